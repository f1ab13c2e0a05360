"""Settings side by side in numbers, means over their seeds, each with its difference from the baseline."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from poweropd_lite.base.intervals import stat
from poweropd_lite.base.progress import clock
from poweropd_lite.base.tables import percent, score_names
from poweropd_lite.report.ends import differences
from poweropd_lite.report.groups import Group
from poweropd_lite.report.read import Reference, Run
from poweropd_lite.report.series import Series, accuracy, first_step_at, phases, unit_of, with_finite

DECIMALS = {"tokens": ".1f", "steps": ".0f", "GiB": ".2f"}  # of others, three digits
MOST_DECIMALS = 6  # of a difference that is hardly more than its noise
EACH = "each"  # the unit of what is no mean: where seeds differ, all of them are shown
# Of these the extreme over the seeds is shown; of other numbers the mean, with its interval.
EXTREMES: dict[str, Callable[[list[float]], float]] = {
    "least reward of any token": min,
    "greatest reward of any token": max,
    "largest mean gap of engine and trainer": max,
    "memory measured, peak": max,
    "memory planned, peak": max,
}
# What runs beside one another do to each other is no difference of their settings.
OF_THE_MACHINE = ("seconds a step, median", "tokens a second, median", "time in all", "memory measured, peak")
# "name", "unit"; by setting "values" (None where there is none), "halves" of their 95% intervals over "seeds" that have
# a value, and "differences" from the baseline with the "noise" (half of an interval too) that they have to exceed
Row = dict[str, Any]


def figures(run: Run, teacher: Reference | None, level: float | None, curve: Series) -> dict[str, tuple[Any, str]]:
    """Returns what there is to say of a run, by name: a value and its unit ("" for a text or a pure number).

    `level` is the accuracy whose first step on `curve`, of all of the setting's seeds, is given. Shares are 0 to 1,
    under "%".
    """
    found, taken = accuracy([run]), run.steps[-1]["step"] if run.steps else 0
    unit = "" if run.config.eval_grader else "%"
    name, best = score_names(run.config.eval_samples, not unit)
    before = found["avg"][0] if 0 in found["step"] else None
    end = {key: values[-1] if any(found["step"]) else None for key, values in found.items()}
    after = end["avg"]

    def over(take: Callable[[list[float]], float], key: str) -> float | None:
        values = [line[key] for line in with_finite(run.steps, [key])]
        return take(values) if values else None

    out: dict[str, tuple[Any, str]] = {
        "reward": (run.config.reward_label, ""),
        "steps taken": (taken, EACH),
        "finished": ("yes" if (run.summary or {}).get("finished") else "no", EACH),
        f"{name} before training": (before, unit),
        f"{name} at the end": (after, unit),
    }
    if teacher is not None:
        share = after / teacher.accuracy if after is not None and teacher.accuracy else None
        out["share of the teacher's accuracy"], closed = (share, "%"), None
        if after is not None and before not in (None, teacher.accuracy):
            closed = (after - before) / (teacher.accuracy - before)
        out["share of the gap to the teacher closed"] = (closed, "%")
    if level is not None:
        out[f"steps to {name} {in_words(level, unit)}"] = (first_step_at(curve, level), "steps")
    greedy = f"greedy {'accuracy' if unit else 'score'}"
    for what, key, size in (
        (best, "pass", unit),
        (greedy, "greedy", unit),
        ("mean length", "length", "tokens"),
        ("answers that stop", "stop", "%"),
    ):
        out[f"{what} before training"] = (found[key][0] if 0 in found["step"] else None, size)
        out[f"{what} at the end"] = (end[key], size)
    for benchmark, of in run.scored.items():
        when = "" if of.step == taken else f" at step {of.step}"
        out[f"{of.title} on {benchmark} by evaluate{when}"] = (of.avg, of.unit)
    for name, lines, key in (("held-out prompts", run.evaluations, "eval/kl"), ("training", run.steps, "kl/train")):
        kl = [line[key] for line in with_finite(lines, [key])]
        out[f"KL to the teacher, {name}, first"] = (kl[0] if kl else None, "nats")
        out[f"KL to the teacher, {name}, last"] = (kl[-1] if len(kl) > 1 else None, "nats")
    logprobs = [line["eval/teacher_logprob"] for line in with_finite(run.evaluations, ["eval/teacher_logprob"])]
    out["teacher's mean log p, held-out prompts, last"] = (logprobs[-1] if logprobs else None, "nats")
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
        "time in all": (sum(phases([run]).values()), "clock"),
        "memory measured, peak": (over(max, "memory/peak_gib"), "GiB"),
        "memory planned, peak": (over(max, "memory/planned_gib"), "GiB"),
        "dropped steps": (over(max, "optim/skipped_total"), EACH),
        "out of memory, times": (over(max, "optim/out_of_memory"), EACH),
    }


def is_above(teacher: Reference, groups: Sequence[Group]) -> bool:
    """Whether a teacher is known to be more than what any run began with: else shares of it say nothing."""
    least = teacher.accuracy if teacher.interval is None else teacher.interval[0]
    found = [accuracy([run]) for group in groups if teacher.own == (not unit_of([group])) for run in group.runs]
    return teacher.accuracy > 0 and all(of["avg"][0] < least for of in found if 0 in of["step"])


def table(groups: Sequence[Group], baseline: Group, teacher: Reference | None) -> list[Row]:
    """Returns the rows of the page's table, by setting; the baseline, texts and extremes have no differences."""
    level = max(accuracy(baseline.runs)["avg"][1:], default=None) if len(groups) > 1 else None  # alone: its last step
    shared = teacher if teacher is not None and is_above(teacher, groups) else None
    columns = [
        {run.config.seed: figures(run, shared, level, accuracy(group.runs)) for run in group.runs} for group in groups
    ]
    rows = []
    for name in dict.fromkeys(name for column in columns for of in column.values() for name in of):
        unit = next(of[name][1] for column in columns for of in column.values() if name in of)
        seeds = [{s: of[name][0] for s, of in c.items() if of.get(name, (None,))[0] is not None} for c in columns]
        row: Row = {"name": name, "unit": unit, "values": [_together(name, unit, each) for each in seeds]}
        is_mean = unit not in (EACH, "steps") and name != "reward" and name not in EXTREMES
        stats = [stat(each) if is_mean else None for each in seeds]
        row |= {"halves": [one and one.half for one in stats], "seeds": [len(each) for each in seeds]}
        by_label = {group.label: each for group, each in zip(groups, seeds, strict=True) if each and is_mean}
        found = {} if name in OF_THE_MACHINE else differences(by_label, baseline.label)
        for key, take in (("differences", lambda of: of.value), ("noise", lambda of: of.half)):
            row[key] = [take(found[group.label]) if group.label in found else None for group in groups]
        if any(value is not None for value in row["values"]):
            rows.append(row)
    return rows


def _together(name: str, unit: str, seeds: dict[int, Any]) -> Any:
    """A setting's value: what all seeds have, else their mean, extreme, or one after the other."""
    values = list(seeds.values())
    if len(set(values)) <= 1:
        return values[0] if values else None
    if unit == EACH or isinstance(values[0], str):
        return " / ".join(map(str, values))
    return EXTREMES.get(name, statistics.fmean)(values)


def in_words(value: Any, unit: str, half: float | None = None) -> str:
    """Returns a value of the table as it is shown, with half of its interval: "88% \u00b1 3", "0.0123 \u00b1 0.0004"."""
    if value is None or isinstance(value, str):
        return value or "-"
    if unit == "clock":
        return clock(value)
    if unit == "%":
        if not half or 100 * half < 0.05:
            return percent(value)
        digits = _of_points(100 * half)
        return f"{_rounded(100 * value, digits)}% \u00b1 {_rounded(100 * half, digits)}"
    if unit == EACH or isinstance(value, int) and value < 1000:
        return f"{value:,.0f}"
    size = unit if unit != EACH else ""
    if half:
        return f"{_to_digit_of(half, value)} \u00b1 {_to_digit_of(half, half)} {size}".strip()
    return f"{_plain(value, DECIMALS.get(unit))} {size}".strip()


def _plain(value: float, form: str | None = None) -> str:
    """Three digits, however large or small: 142,000, 3,280, 0.0178."""
    if form is not None and abs(value) < 1000:
        return format(value, form)
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _to_digit_of(half: float, value: float) -> str:
    """A value to the last digit that its noise lets say something: the first of the noise, or the second after a 1."""
    return _rounded(value, _digits(half))


def _digits(half: float) -> int:
    first = math.floor(math.log10(half))
    return int(half < 2 * 10**first) - first


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits):,.{max(0, digits)}f}"


def noise_in_words(half: float, unit: str) -> str:
    """Returns half of a difference's interval as it is shown: "11 points"."""
    if unit == "%":
        return f"{_rounded(100 * half, _of_points(100 * half))} points"
    return f"{_to_digit_of(half, half)} {unit}".strip()


def _of_points(half: float) -> int:
    """Decimals of percentage points whose noise is `half` of them, as of the shares that they are differences of."""
    return 0 if half >= 2 else 1 if half >= 0.05 else _digits(half)


def difference_in_words(value: float | None, unit: str, noise: float | None) -> str:
    """Returns a difference as it is shown, shares in percentage points; nothing if noise may be all of it.

    It has as many digits as it takes to be seen to be more than its noise.
    """
    if value is None or noise is None or abs(value) <= noise:
        return ""
    size = {"%": "points", "clock": "s"}.get(unit, unit)
    scale = 100 if unit == "%" else 1
    sign, value, half = "+" if value > 0 else "-", scale * abs(value), scale * noise
    if not half:
        return f"{sign}{_plain(value)} {size}".strip()
    digits = _of_points(half) if unit == "%" else _digits(half)
    while round(value, digits) <= round(half, digits) and digits < MOST_DECIMALS:
        digits += 1
    return f"{sign}{_rounded(value, digits)} \u00b1 {_rounded(half, digits)} {size}".strip()
