"""What came out, in sentences: first the answer, which names a difference only beyond noise, then a line a setting."""

import math
import shlex
import statistics
from collections.abc import Sequence

from poweropd_lite.base.config import marked
from poweropd_lite.base.intervals import NORMAL, is_noise, stat
from poweropd_lite.base.tables import score_names
from poweropd_lite.report.ends import End, Seeds, differences, end_of, kl_ends, median_norms
from poweropd_lite.report.groups import Group, differing_settings
from poweropd_lite.report.read import Reference, Run
from poweropd_lite.report.series import accuracy, pooled, unit_of, with_finite
from poweropd_lite.report.table import difference_in_words, in_words, is_above, noise_in_words

# What decides which of a run's own prompts are held out.
OF_HELD_OUT = (
    "data",
    "data_subset",
    "data_split",
    "prompt_column",
    "prompt_suffix",
    "system_prompt",
    "max_prompt_tokens",
)
MOST_NAMED = 5  # settings in a sentence; the list below it has them all
ONE_SEED = (
    "With one seed a setting, what noise alone does is not known, and no difference is named: train more seeds "
    "(--seed 1), or evaluate each (python -m poweropd_lite.evaluate --model RUN) and compare them problem by problem (python -m "
    "poweropd_lite.evaluate --compare {} {})."
)


def answer(groups: Sequence[Group], baseline: Group, base: Reference | None = None) -> list[str]:
    """Returns the answer to what several settings compare, [] for one: how they end, and how their gradients differ."""
    if len(groups) < 2:
        return []
    scored = [group.config for group in groups if accuracy(group.runs)["step"]] or [group.config for group in groups]
    apart = {*marked("scores"), *(OF_HELD_OUT if any(config.hold_out for config in scored) else ())}
    if differing := [name for name in differing_settings(scored) if name in apart]:
        return [f"Evaluated differently ({', '.join(differing)}): the accuracies of these runs do not compare."]
    out, end = [], end_of(groups)
    other = next(group for group in groups if group is not baseline)
    one_seed = ONE_SEED.format(*(shlex.quote(str(group.runs[0].path)) for group in (baseline, other)))
    if end is not None:
        at_end = "" if end.unit == "nats" else " at the end"
        against = _against(f"{end.name}{at_end}", end.unit, end.values, baseline.label, one_seed)
        out.append(against + _best(end.values, end.unit == "nats", baseline.label) + _against_before(groups, end, base))
        if lacking := [group.label for group in groups if group.label not in end.values]:
            out[-1] += f" Not known of {_listed(_few(lacking))}."
    norms = median_norms(groups)
    if any(of.half is not None for of in differences(norms, baseline.label).values()):
        out.append(_against("Median gradient norm", "", norms, baseline.label, one_seed))
    return out


def _against(what: str, unit: str, values: dict[str, Seeds], base: str, one_seed: str) -> str:
    """How every setting stands to the baseline; all of their values, and `one_seed`, where noise is not known."""
    found = differences(values, base)
    by_mean = sorted(values, key=lambda label: statistics.fmean(values[label].values()))
    few_enough = len(values) <= MOST_NAMED
    named = list(values) if few_enough else [by_mean[0], by_mean[-1]]
    ends = _listed([f"{label} {_mean(values[label], unit)}" for label in named], "and" if few_enough else "to")
    ends = ends if few_enough else f"from {ends}"
    if not found:
        return f"{what}: {ends}."
    known = {label: of for label, of in found.items() if of.half is not None}
    if not known:
        return f"{what}: {ends}. {one_seed}"
    parts = [
        f"{label} {difference_in_words(of.value, unit, of.half)}" for label, of in known.items() if of.beyond_noise
    ]
    same = [label for label, of in known.items() if not of.beyond_noise]
    few = [label for label in found if label not in known]
    text = f"{what}: {ends}."
    text += f" Against {base}: {'; '.join(parts)}." if parts else ""
    if same:
        halves = [half for label in same if (half := known[label].half)]
        sizes = [*dict.fromkeys(noise_in_words(half, unit) for half in (min(halves), max(halves)))] if halves else []
        sizes[:-1] = [size.split()[0] for size in sizes[:-1]]  # the unit once
        noise = f" (noise: \u00b1 {' to '.join(sizes)})" if halves else ""
        text += f" No difference beyond noise between {base} and {_listed(_few(same), 'or')}{noise}."
    return text + (f" Of one seed, too few to tell: {', '.join(_few(few))}." if few else "")


def _best(values: dict[str, Seeds], least: bool, base: str) -> str:
    """Which of three settings or more has the best mean, and which can't be told from it; "" if that is the baseline, of
    which it is said, and where one seed leaves noise unknown.
    """
    best = (min if least else max)(values, key=lambda label: statistics.fmean(values[label].values()))
    found = differences(values, best)
    if len(values) < 3 or best == base or any(of.half is None for of in found.values()):
        return ""
    same = [label for label, of in found.items() if not of.beyond_noise]
    told = f"not to be told from {_listed(_few(same), 'or')}" if same else "beyond noise against all others"
    return f" {'Lowest' if least else 'Highest'} mean: {best}, {told}."


def _against_before(groups: Sequence[Group], end: End, base: Reference | None) -> str:
    """Which settings' scores did not change beyond their seeds' noise since before training, and which fell; "" for none.

    Both are of the same problems: training's own evaluations, or what evaluate found and `base`.
    """
    same: list[str] = []
    fell: list[str] = []
    for group in groups if end.unit != "nats" else ():
        ends, steps = end.values.get(group.label, {}), accuracy(group.runs)["step"]
        if end.own:
            first = _accuracy(group.runs, 0) if ends and steps[0] == 0 else {}
        else:
            there = base is not None and base.own == (not end.unit) and base.is_of(group.runs[0].scored)
            first = dict.fromkeys(ends, base.accuracy) if base is not None and there else {}
        found = stat({seed: ends[seed] - before for seed, before in first.items()})
        if found is not None and found.half is not None and found.mean <= found.half:
            (same if abs(found.mean) <= found.half else fell).append(group.label)
    text = f" No change beyond noise since before training: {_listed(_few(same))}." if same else ""
    return text + (f" Worse than before training: {_listed(_few(fell))}." if fell else "")


def _few(labels: Sequence[str]) -> Sequence[str]:
    return labels if len(labels) < MOST_NAMED else [f"{len(labels)} of the others"]


def _mean(seeds: Seeds, unit: str) -> str:
    found = stat(seeds)
    return in_words(found.mean, unit, found.half) if found else "-"


def _listed(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def sentences(groups: Sequence[Group], teacher: Reference | None, base: Reference | None = None) -> list[str]:
    """Returns what came out of each setting, in a sentence, and what the teacher and the untrained student come to."""
    shared = teacher if teacher is not None and is_above(teacher, groups) else None
    out = [_sentence(group, shared, alone=len(groups) == 1) for group in groups]
    for name, model in (("Teacher", teacher), ("Before training", base)):
        if model is not None:
            unit = "" if model.own else "%"
            low_high = f" (95%: {_bounds(model.interval, unit)})" if model.interval else ""
            out.append(f"{name}: {in_words(model.accuracy, unit)}{low_high}, {model.source}.")
    if teacher is not shared:
        out.append(
            "The teacher is not known to do these problems better than the student did before training: shares of it are left out."
        )
    if any(run.scored for group in groups for run in group.runs) and not any(accuracy(g.runs)["step"] for g in groups):
        out.append(
            "No accuracy by step: scored after training alone (train's --eval-benchmarks and --eval-every score on the way)."
        )
    return out


def _bounds(interval: tuple[float, float], unit: str) -> str:
    return " to ".join(in_words(value, unit).removesuffix("%") for value in interval)


def _sentence(group: Group, teacher: Reference | None, alone: bool) -> str:
    runs, unit = group.runs, unit_of([group])
    name, _ = score_names(group.config.eval_samples, not unit)
    taken = [run.steps[-1]["step"] if run.steps else 0 for run in runs]
    if len(runs) == 1:
        text = f"{runs[0].name} ({group.config.reward_label if alone or group.label == runs[0].name else group.label})"
    else:
        text = f"{group.label}, {len(runs)} seeds"
    steps_taken = str(taken[0]) if len(set(taken)) == 1 else f"{', '.join(map(str, taken))} (curves end at the least)"
    text += f", {steps_taken} of {group.config.steps} steps: "
    steps = accuracy(runs)["step"]
    if len(steps) > 1:
        first, last = (_accuracy(runs, step) for step in (steps[0], steps[-1]))
        notes = [f"step {steps[0]} -> {steps[-1]}"] * (steps[-1] != min(taken)) + [_change(runs, unit)]
        note = "; ".join(filter(None, notes))
        text += f"{name} {_mean(first, unit)} -> {_mean(last, unit)}" + (f" ({note})" if note else "")
        if teacher is not None and teacher.own == (not unit):
            text += f", {_mean({s: v / teacher.accuracy for s, v in last.items()}, '%')} of the teacher's"
    elif steps:
        text += f"{name} {_mean(_accuracy(runs, steps[0]), unit)} at step {steps[0]}"
    elif all(run.scored for run in runs):
        text += _evaluated(runs, teacher)
    else:
        text += _kl(runs) or "not evaluated"
    if pooled(runs, min) is None:
        one = "it kept no rewards by token (made by an earlier version)"
        text += f"; {one if len(runs) == 1 else 'its seeds kept no rewards by token of one step'}"
    return f"{text}."


def _change(runs: Sequence[Run], unit: str) -> str:
    """By how much one run's accuracy changed, +- half of its 95% interval over the problems, both ends taken as independent."""
    of = accuracy(runs)
    errors = of.get("error", [None])  # of several seeds there are none
    first, last = errors[0], errors[-1]
    if first is None or last is None:
        return ""
    change, error = of["avg"][-1] - of["avg"][0], math.hypot(first, last)
    scale, form, size = (100, ".1f", " points") if unit else (1, ".3f", "")
    noise = ", within noise" * is_noise(change, error)
    return f"{scale * change:+{form}} \u00b1 {scale * NORMAL * error:{form}}{size}, 95%{noise}"


def _accuracy(runs: Sequence[Run], step: int) -> Seeds:
    found = {run.config.seed: accuracy([run]) for run in runs}
    return {seed: of["avg"][of["step"].index(step)] for seed, of in found.items()}


def _evaluated(runs: Sequence[Run], teacher: Reference | None) -> str:
    parts, scored = [], runs[0].scored
    for name, found in scored.items():
        values = {run.config.seed: run.scored[name].avg for run in runs if name in run.scored}
        few = "" if len(values) == len(runs) else f" ({len(values)} of {len(runs)} seeds)"
        parts.append(f"{found.title} {_mean(values, found.unit)} on {name} at step {found.step}{few}")
    text = f"{', '.join(parts)} by evaluate"
    if teacher is not None and len(scored) == 1 and teacher.is_of(scored) and teacher.own == (not found.unit):
        text += f", {_mean({s: v / teacher.accuracy for s, v in values.items()}, '%')} of the teacher's"
    return text


def _kl(runs: Sequence[Run]) -> str:
    """The KL to the teacher before and after, on held-out prompts, else in training; "" where a run has neither."""
    for where, lines, key in (
        ("held-out prompts", [run.evaluations for run in runs], "eval/kl"),
        ("the training rollouts", [run.steps for run in runs], "kl/train"),
    ):
        found = [kl_ends(each, key) for each in lines]
        if all(found):
            first, last = ({run.config.seed: e[i] for run, e in zip(runs, found, strict=True) if e} for i in (0, 1))
            texts, note = [_mean(first, ""), _mean(last, "")], ""
            ends = with_finite(lines[0], ["eval/kl"])
            if len(runs) == 1 and ends and with_finite([ends[0], ends[-1]], ["eval/kl_error"]) == [ends[0], ends[-1]]:
                texts = [f"{end['eval/kl']:.3f} \u00b1 {end['eval/kl_error']:.3f}" for end in (ends[0], ends[-1])]
                note = " (\u00b1 one standard error)"
            change = " -> ".join(texts if first != last else texts[:1])
            return f"KL to the teacher on {where} {change} nats a token{note}"
    return ""
