"""The numbers under every figure, from what a run wrote: plain lists, which stand in report.json too.

A point that is not there (no evaluation, a step that was dropped) is left out; None stands for what is not defined.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from poweropd_lite.report.groups import Group
from poweropd_lite.report.read import Line, Run
from poweropd_lite.rewards.paper import log_ratio, power

Series = dict[str, list]
MOST_POINTS = 400  # of a line: more are not told apart on a page
PHASES = ("rollout", "teacher", "student", "guard", "optimizer")


def by_step(runs: Sequence[Run], *keys: str) -> Series:
    """Returns the metrics `keys` of a setting's runs, as `over_seeds` has them.

    Of more than 400 steps, spans of equal length are taken together: a minimum by its least, a maximum, gap or gradient
    norm by its greatest, all else by its mean; "step" is then a span's last.
    """
    return over_seeds([run.steps for run in runs], {key: key for key in keys}, MOST_POINTS)


def over_seeds(runs: Sequence[Sequence[Line]], keys: dict[str, str], most: int) -> Series:
    """Returns by name the metrics `keys` at the steps where all runs have them finite, and "step".

    Of one run they are its own. Of several, the mean (of a minimum the least, of a maximum the greatest) stands under
    the name, and the least and the greatest of any run under NAME_low and NAME_high. `most` is the number of points.
    """
    found = [{line["step"]: line for line in with_finite(lines, keys.values())} for lines in runs]
    steps = sorted(set.intersection(*map(set, found)))
    span = math.ceil(len(steps) / most) or 1
    parts = [steps[i : i + span] for i in range(0, len(steps), span)]
    out: Series = {"step": [part[-1] for part in parts]}
    for name, key in keys.items():
        each = [[_together(key)([lines[step][key] for step in part]) for part in parts] for lines in found]
        points = list(zip(*each, strict=True))
        if len(runs) == 1:
            out[name] = each[0]
        else:
            across = {"/min": min, "/max": max}.get(key[-4:], statistics.fmean)
            out |= {name: list(map(across, points)), f"{name}_low": list(map(min, points))}
            out[f"{name}_high"] = list(map(max, points))
    return out


def with_finite(lines: Sequence[Line], keys: Iterable[str]) -> list[Line]:
    """Returns the lines that have all of `keys`, and finite."""
    return [line for line in lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)]


def _together(key: str) -> Callable[[list[float]], float]:
    if key.endswith("/min"):
        return min
    return max if key.endswith(("max", "/grad_norm")) else statistics.fmean


def accuracy(runs: Sequence[Run]) -> Series:
    """Returns Avg@k, Pass@k, greedy accuracy, length and stop share of a setting's evaluations, as `over_seeds` does.

    Where a user's function scores, the mean score, the best of k and the greedy one. One run has the standard errors of "avg"
    over its problems as "error", None where there is none.
    """
    k, best = runs[0].config.eval_samples, "best" if runs[0].config.eval_grader else "pass"
    short = {"avg": f"avg@{k}", "pass": f"{best}@{k}", "greedy": "greedy", "length": "length", "stop": "stop_share"}
    keys = {name: f"eval/{metric}" for name, metric in short.items()}
    out = over_seeds([run.evaluations for run in runs], keys, most=10**6)
    return out | (_errors(runs[0], "eval/avg_error", out) if len(runs) == 1 else {})


def _errors(run: Run, key: str, found: Series) -> Series:
    """The standard errors of a run's evaluations, at the steps of a series."""
    known = {line["step"]: line[key] for line in with_finite(run.evaluations, [key])}
    return {"error": [known.get(step) for step in found["step"]]}


def unit_of(groups: Sequence[Group]) -> str:
    """Returns the unit of the settings' scores: shares in %, or pure numbers where a user's function gives them."""
    return "" if any(group.config.eval_grader for group in groups) else "%"


def bases(found: dict[str, Series]) -> set[float]:
    """Returns what the accuracies of settings, by label, were before training; one number where they began alike."""
    return {of["avg"][0] for of in found.values() if of["step"] and of["step"][0] == 0}


def divergence(runs: Sequence[Run]) -> dict[str, Series]:
    """Returns the KL to the teacher per token, in nats: by step of training, and of evaluations on held-out prompts.

    One run has the standard errors of held-out points as "error", None where there is none. Of training, "smooth" is
    the mean over the steps around a step: a twentieth of them in all.
    """
    train = over_seeds([run.steps for run in runs], {"kl": "kl/train"}, MOST_POINTS)
    held_out = over_seeds([run.evaluations for run in runs], {"kl": "eval/kl"}, most=10**6)
    if len(runs) == 1:
        held_out |= _errors(runs[0], "eval/kl_error", held_out)
    reach = len(train["kl"]) // 40
    windows = [train["kl"][max(0, i - reach) : i + reach + 1] for i in range(len(train["kl"]))]
    train["smooth"] = list(map(statistics.fmean, windows))
    return {"train": train, "held_out": held_out}


def first_step_at(found: Series, level: float) -> float | None:
    """Returns the step at which Avg@k first is `level`, on straight lines between evaluations; None if it never is."""
    points = list(zip(found["step"], found["avg"], strict=True))
    if points and points[0][1] >= level:
        return float(points[0][0])
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if low < level <= high:
            return before + (level - low) / (high - low) * (after - before)
    return None


def steps_to(groups: Sequence[Group], baseline: Group) -> dict[str, Any]:
    """Returns, for every accuracy that the baseline newly reaches, the steps that each setting needs (paper's Fig. 1)."""
    reached = accuracy(baseline.runs)["avg"]
    levels = [avg for i, avg in enumerate(reached) if i and avg > max(reached[:i])]
    found = {group.label: [first_step_at(accuracy(group.runs), level) for level in levels] for group in groups}
    return {"baseline": baseline.label, "levels": levels, "steps": found}


def pooled(runs: Sequence[Run], which: Callable[[list[int]], int]) -> Line | None:
    """Returns the tokens of a setting's runs taken together: the line of tokens.jsonl at the step that `which` (min or
    max) chooses of those that all runs kept. None if there is no such step, or their bins differ.
    """
    kept = [{line["step"]: line for line in run.tokens} for run in runs]
    common = set.intersection(*map(set, kept))
    if not common:
        return None
    lines = [of[which(sorted(common))] for of in kept]
    first = lines[0]
    if any(
        (line["low"], line["high"], line["position_width"]) != (first["low"], first["high"], first["position_width"])
        for line in lines
    ):
        return None
    out = dict(first)
    for key in ("counts", "position_count", "position_sum"):
        out[key] = [sum(at) for at in zip(*(line[key] for line in lines), strict=True)]
    for key in ("below", "above", "not_finite"):
        out[key] = sum(line[key] for line in lines)
    for key, end in (("position_min", min), ("position_max", max)):
        there = [
            [line[key][i] for line in lines if line["position_count"][i]] for i in range(len(out["position_count"]))
        ]
        out[key] = [end(values, default=0.0) for values in there]
    return out


def density(line: Line) -> dict[str, Any]:
    """Returns a step's histogram of rewards (a line of tokens.jsonl) as a density, and what lay outside of it.

    The density is over finite rewards: its integral and the shares outside make 1.
    """
    counts, low = line["counts"], line["low"]
    width, total = (line["high"] - low) / len(counts), sum(counts) + line["below"] + line["above"]
    return {
        "step": line["step"],
        "edges": [low + i * width for i in range(len(counts) + 1)],
        "density": [count / (total * width) if total else 0.0 for count in counts],
        "tokens": total,
        **{key: line[key] for key in ("below", "above", "not_finite")},
    }


def positions(line: Line) -> dict[str, Any]:
    """Returns mean, least and greatest reward by place in the completion, of a line of tokens.jsonl.

    The first token is at 0; a place stands for a bin of `width` tokens and is its middle.
    """
    count, width = line["position_count"], line["position_width"]
    there = [i for i in range(len(count)) if count[i]]
    return {
        "step": line["step"],
        "width": width,
        "place": [i * width + (width - 1) / 2 for i in there],
        "count": [count[i] for i in there],
        "mean": [line["position_sum"][i] / count[i] for i in there],
        **{end: [line[f"position_{end}"][i] for i in there] for end in ("min", "max")},
    }


def landscape(alphas: Sequence[float], points: int = 41) -> dict[str, Any]:
    """Returns the size of the log ratio and of power rewards over a grid of the student's q and the teacher's p.

    It is even in the log odds, from 0.0001 to 0.9999: rewards of a small alpha differ near 0, of a large one near 1.
    """
    end = math.log(9999)
    grid = [1 / (1 + math.exp(end - 2 * end * i / (points - 1))) for i in range(points)]
    log = torch.tensor(grid, dtype=torch.float64).log()
    paid = {
        "log_ratio": log_ratio(log[:, None], log),
        **{f"power {a:g}": power(log[:, None], log, alpha=a) for a in alphas},
    }
    size = {name: [[float(f"{x:.4g}") for x in row] for row in r.abs().tolist()] for name, r in paid.items()}
    return {"q": grid, "p": grid, "size": size}


def phases(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the mean seconds of a setting's runs: of all steps by phase, what of them was none, and of evaluations."""

    def total(lines: Sequence[Line], key: str) -> float:
        return sum(line[key] for line in with_finite(lines, [key]))

    out = {name: statistics.fmean(total(run.steps, f"time/{name}") for run in runs) for name in PHASES}
    steps = statistics.fmean(total(run.steps, "time/step") for run in runs)
    out["other"] = max(0.0, steps - sum(out.values()))
    return out | {"evaluate": statistics.fmean(total(run.evaluations, "time/evaluate") for run in runs)}
