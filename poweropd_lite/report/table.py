"""Runs side by side in numbers, each with its difference from the baseline, and the settings in which they differ."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from poweropd_lite.base.progress import clock
from poweropd_lite.report.read import Reference, Run
from poweropd_lite.report.series import accuracy, first_step_at, phases

DECIMALS = {"tokens": ".1f", "steps": ".1f", "s": ".3f", "GiB": ".2f"}  # of others, three digits
Row = dict[
    str, Any
]  # what it is, its unit, a value a run (None where there is none), and the differences from the baseline


def figures(run: Run, teacher: Reference | None, level: float | None) -> dict[str, tuple[Any, str]]:
    """Returns what there is to say of a run, by name: a value and its unit ("%", "points", "s", ...; "" for a text or a pure number).

    `level` is the accuracy whose first step is given. Shares are 0 to 1.
    """
    found, steps, k = accuracy(run), run.steps, run.config.eval_samples
    before = found["avg"][0] if found["step"] and found["step"][0] == 0 else None
    after = found["avg"][-1] if found["step"] and found["step"][-1] > 0 else None
    last = found["step"] != [] and found["step"][-1] > 0
    taken = steps[-1]["step"] if steps else 0
    out: dict[str, tuple[Any, str]] = {
        "reward": (run.reward, ""),
        "steps taken": (taken, ""),
        "finished": ("yes" if (run.summary or {}).get("finished") else "no", ""),
        f"Avg@{k} before training": (before, "%"),
        f"Avg@{k} at the end": (after, "%"),
    }  # fmt: skip
    if teacher is not None:
        out["share of the teacher's accuracy"] = (None if after is None else after / teacher.accuracy, "%")
        closed = None if None in (before, after) or teacher.accuracy == before else (after - before) / (teacher.accuracy - before)  # fmt: skip
        out["share of the gap to the teacher closed"] = (closed, "%")
    if level is not None:
        out[f"steps to Avg@{k} {level:.1%}"] = (first_step_at(found, level), "steps")
    for name, key, unit in (
        (f"Pass@{k} at the end", "pass", "%"),
        ("greedy accuracy at the end", "greedy", "%"),
        ("mean length at the end", "length", "tokens"),
        ("answers that stop at the end", "stop", "%"),
    ):
        out[name] = (found[key][-1] if last else None, unit)
    for benchmark, (n, avg, step) in run.scored.items():
        when = "" if step == taken else f" at step {step}"
        out[f"Avg@{n} on {benchmark} by evaluate{when}"] = (avg, "%")
    out |= {
        "least reward of any token": (_of(min, steps, "reward/min"), ""),
        "greatest reward of any token": (_of(max, steps, "reward/max"), ""),
        "median gradient norm": (_of(statistics.median, steps, "optim/grad_norm"), ""),
        "largest gradient norm": (_of(max, steps, "optim/grad_norm"), ""),
        "mass kept by truncation": (_of(statistics.fmean, steps, "sampling/kept_mass"), "%"),
        "largest mean gap of engine and trainer": (_of(max, steps, "parity/gap"), "nats"),
        "seconds a step, median": (_of(statistics.median, steps, "time/step"), "s"),
        "tokens a second, median": (_of(statistics.median, steps, "time/tokens_per_second"), ""),
        "sampled tokens": (_of(max, steps, "tokens/total"), ""),
        "time in all": (sum(phases(run).values()), "clock"),
        "memory measured, peak": (_of(max, steps, "memory/peak_gib"), "GiB"),
        "memory planned, peak": (_of(max, steps, "memory/planned_gib"), "GiB"),
        "dropped steps": (_of(max, steps, "optim/skipped_total"), ""),
        "out of memory": (_of(max, steps, "optim/out_of_memory"), "times"),
    }
    return out


def table(runs: Sequence[Run], baseline: Run, teacher: Reference | None) -> list[Row]:
    """Returns the rows of the page's table: "name", "unit", "values" and "differences" (None for the baseline and for texts), by run."""
    base = accuracy(baseline)["avg"]
    level = max(base[1:], default=None) if len(runs) > 1 else None  # alone it is its own last step
    columns = [figures(run, teacher, level) for run in runs]
    own = runs.index(baseline)
    names = dict.fromkeys(name for column in columns for name in column)  # Avg@2 and Avg@8 are two rows
    rows = []
    for name in names:
        unit = next(column[name][1] for column in columns if name in column)
        values = [column.get(name, (None, unit))[0] for column in columns]
        reference = values[own]
        differences = [
            None if i == own or isinstance(value, str) or None in (value, reference) else value - reference
            for i, value in enumerate(values)
        ]
        if any(value is not None for value in values):
            rows.append({"name": name, "unit": unit, "values": values, "differences": differences})
    return rows


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings, but for the output folder, in which the runs differ, with the value of each run."""
    dumps = [run.config.model_dump() for run in runs]
    names = [
        name
        for name in (dumps[0] if dumps else ())
        if name != "output" and any(dump[name] != dumps[0][name] for dump in dumps)
    ]
    found = {name: [dump[name] for dump in dumps] for name in names}
    if "alpha" in found:
        found["alpha"] = [dump["alpha"] if dump["reward"] == "power" else "ignored" for dump in dumps]
    return found


def in_words(value: Any, unit: str) -> str:
    """Returns a value of the table as it is shown."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if unit == "%":
        return f"{100 * value:.1f}%"
    if unit == "clock":
        return clock(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f} {unit}".strip()
    return f"{value:{DECIMALS.get(unit, '.3g')}} {unit}".strip()


def difference_in_words(value: float | None, unit: str) -> str:
    """Returns a difference as it is shown, shares in percentage points; nothing if it would be shown as zero."""
    if value is None or in_words(abs(value), unit) == in_words(0.0 if isinstance(value, float) else 0, unit):
        return ""
    if unit == "%":
        return f"{100 * value:+.1f} points"
    return ("+" if value > 0 else "-") + in_words(abs(value), unit)


def _of(take: Any, steps: Sequence[dict[str, Any]], key: str) -> Any:
    values = [line[key] for line in steps if math.isfinite(line.get(key, math.nan))]
    return take(values) if values else None
