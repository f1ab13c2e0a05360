"""Runs side by side in numbers, each with its difference from the baseline, and the settings in which they differ."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from poweropd_lite.base.progress import clock
from poweropd_lite.base.tables import percent
from poweropd_lite.method.reward import REWARDS
from poweropd_lite.report.read import Reference, Run
from poweropd_lite.report.series import accuracy, first_step_at, phases, with_finite

DECIMALS = {"tokens": ".1f", "steps": ".1f", "s": ".3f", "GiB": ".2f"}  # of others, three digits
# "name", "unit", and a value a run (None where there is none) as "values", and as "differences" from the baseline's
Row = dict[str, Any]


def figures(run: Run, teacher: Reference | None, level: float | None) -> dict[str, tuple[Any, str]]:
    """Returns what there is to say of a run, by name: a value and its unit ("" for a text or a pure number).

    `level` is the accuracy whose first step is given. Shares are 0 to 1, under "%".
    """
    found, k, taken = accuracy(run), run.config.eval_samples, run.steps[-1]["step"] if run.steps else 0
    before = found["avg"][0] if 0 in found["step"] else None
    end = {key: values[-1] if any(found["step"]) else None for key, values in found.items()}
    after = end["avg"]

    def over(take: Callable[[list[float]], float], key: str) -> float | None:
        values = [line[key] for line in with_finite(run.steps, [key])]
        return take(values) if values else None

    out: dict[str, tuple[Any, str]] = {
        "reward": (run.config.reward_label, ""),
        "steps taken": (taken, ""),
        "finished": ("yes" if (run.summary or {}).get("finished") else "no", ""),
        f"Avg@{k} before training": (before, "%"),
        f"Avg@{k} at the end": (after, "%"),
    }
    if teacher is not None:
        out["share of the teacher's accuracy"] = (None if after is None else after / teacher.accuracy, "%")
        closed = None
        if after is not None and before not in (None, teacher.accuracy):
            closed = (after - before) / (teacher.accuracy - before)
        out["share of the gap to the teacher closed"] = (closed, "%")
    if level is not None:
        out[f"steps to Avg@{k} {level:.1%}"] = (first_step_at(found, level), "steps")
    out |= {
        f"Pass@{k} at the end": (end["pass"], "%"),
        "greedy accuracy at the end": (end["greedy"], "%"),
        "mean length at the end": (end["length"], "tokens"),
        "answers that stop at the end": (end["stop"], "%"),
    }
    for benchmark, (n, avg, step) in run.scored.items():
        when = "" if step == taken else f" at step {step}"
        out[f"Avg@{n} on {benchmark} by evaluate{when}"] = (avg, "%")
    return out | {
        "least reward of any token": (over(min, "reward/min"), ""),
        "greatest reward of any token": (over(max, "reward/max"), ""),
        "median gradient norm": (over(statistics.median, "optim/grad_norm"), ""),
        "largest gradient norm": (over(max, "optim/grad_norm"), ""),
        "mass kept by truncation": (over(statistics.fmean, "sampling/kept_mass"), "%"),
        "largest mean gap of engine and trainer": (over(max, "parity/gap"), "nats"),
        "seconds a step, median": (over(statistics.median, "time/step"), "s"),
        "tokens a second, median": (over(statistics.median, "time/tokens_per_second"), ""),
        "sampled tokens": (over(max, "tokens/total"), ""),
        "time in all": (sum(phases(run).values()), "clock"),
        "memory measured, peak": (over(max, "memory/peak_gib"), "GiB"),
        "memory planned, peak": (over(max, "memory/planned_gib"), "GiB"),
        "dropped steps": (over(max, "optim/skipped_total"), ""),
        "out of memory": (over(max, "optim/out_of_memory"), "times"),
    }


def table(runs: Sequence[Run], baseline: Run, teacher: Reference | None) -> list[Row]:
    """Returns the rows of the page's table, values by run; the baseline and texts have no differences."""
    base = accuracy(baseline)["avg"]
    level = max(base[1:], default=None) if len(runs) > 1 else None  # alone it is its own last step
    columns = [figures(run, teacher, level) for run in runs]
    own = runs.index(baseline)
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):  # Avg@2 and Avg@8 are two rows
        unit = next(column[name][1] for column in columns if name in column)
        values = [column.get(name, (None, unit))[0] for column in columns]
        differences = [
            None if i == own or isinstance(value, str) or None in (value, values[own]) else value - values[own]
            for i, value in enumerate(values)
        ]
        if any(value is not None for value in values):
            rows.append({"name": name, "unit": unit, "values": values, "differences": differences})
    return rows


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings, but for the output folder, in which the runs differ, with the value of each run."""
    dumps = [run.config.model_dump(exclude={"output"}) for run in runs]
    found = {name: [dump[name] for dump in dumps] for name in (dumps[0] if dumps else ())}
    found = {name: values for name, values in found.items() if any(value != values[0] for value in values)}
    if "alpha" in found:
        found["alpha"] = [dump["alpha"] if "alpha" in REWARDS[dump["reward"]].settings else "ignored" for dump in dumps]
    return found


def in_words(value: Any, unit: str) -> str:
    """Returns a value of the table as it is shown."""
    if value is None or isinstance(value, str):
        return value or "-"
    if unit == "%":
        return percent(value)
    if unit == "clock":
        return clock(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f} {unit}".strip()
    return f"{value:{DECIMALS.get(unit, '.3g')}} {unit}".strip()


def difference_in_words(value: float | None, unit: str) -> str:
    """Returns a difference as it is shown, shares in percentage points; nothing if it would be shown as zero."""
    if value is None or in_words(abs(value), unit) == in_words(type(value)(), unit):
        return ""
    if unit == "%":
        return f"{100 * value:+.1f} points"
    return ("+" if value > 0 else "-") + in_words(abs(value), unit)
