"""The numbers under every figure, from what a run wrote: plain lists, which stand in report.json too.

A point that is not there (no evaluation, a step that was dropped) is left out; None stands for what is not defined.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from poweropd_lite.method.reward import log_ratio, power
from poweropd_lite.report.read import Line, Run

Series = dict[str, list]
MOST_POINTS = 400  # of a line: more are not told apart on a page
PHASES = ("rollout", "teacher", "student", "guard", "optimizer")


def by_step(run: Run, *keys: str) -> Series:
    """Returns the metrics `keys` at the steps that have all of them finite, and "step".

    Of more than 400 such steps, spans of equal length are taken together: a minimum by its least, a maximum, gap or
    gradient norm by its greatest, all else by its mean; "step" is then a span's last.
    """
    lines = with_finite(run.steps, keys)
    span = math.ceil(len(lines) / MOST_POINTS) or 1
    parts = [lines[i : i + span] for i in range(0, len(lines), span)]
    out = {key: [_together(key)([line[key] for line in part]) for part in parts] for key in keys}
    return {"step": [part[-1]["step"] for part in parts], **out}


def with_finite(lines: Sequence[Line], keys: Iterable[str]) -> list[Line]:
    """Returns the lines that have all of `keys`, and finite."""
    return [line for line in lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)]


def _together(key: str) -> Callable[[list[float]], float]:
    if key.endswith("/min"):
        return min
    return max if key.endswith(("max", "/grad_norm")) else statistics.fmean


def accuracy(run: Run) -> Series:
    """Returns Avg@k, Pass@k, greedy accuracy, length and stop share of every evaluation, and "step"."""
    k = run.config.eval_samples
    short = {"avg": f"avg@{k}", "pass": f"pass@{k}", "greedy": "greedy", "length": "length", "stop": "stop_share"}
    keys = {"step": "step"} | {name: f"eval/{metric}" for name, metric in short.items()}
    lines = with_finite(run.evaluations, keys.values())
    return {name: [line[key] for line in lines] for name, key in keys.items()}


def first_step_at(found: Series, level: float) -> float | None:
    """Returns the step at which Avg@k first is `level`, on straight lines between evaluations; None if it never is."""
    points = list(zip(found["step"], found["avg"], strict=True))
    if points and points[0][1] >= level:
        return float(points[0][0])
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if low < level <= high:
            return before + (level - low) / (high - low) * (after - before)
    return None


def steps_to(runs: Sequence[Run], baseline: Run) -> dict[str, Any]:
    """Returns, for every accuracy that the baseline newly reaches, the steps that each run needs (paper's Fig. 1)."""
    reached = accuracy(baseline)["avg"]
    levels = [avg for i, avg in enumerate(reached) if i and avg > max(reached[:i])]
    found = {run.name: [first_step_at(accuracy(run), level) for level in levels] for run in runs}
    return {"baseline": baseline.name, "levels": levels, "steps": found}


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


def phases(run: Run) -> dict[str, float]:
    """Returns the seconds of all steps by phase, what of the steps was none of them, and those of evaluations."""

    def total(lines: Sequence[Line], key: str) -> float:
        return sum(line[key] for line in with_finite(lines, [key]))

    out = {name: total(run.steps, f"time/{name}") for name in PHASES}
    out["other"] = max(0.0, total(run.steps, "time/step") - sum(out.values()))
    return out | {"evaluate": total(run.evaluations, "time/evaluate")}
