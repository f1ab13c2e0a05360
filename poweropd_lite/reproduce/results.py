"""What the tasks of a queue left behind, as numbers: scores of their evaluations, and what their steps took."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.reproduce.grid import DONE, Task
from poweropd_lite.reproduce.state import Queue

MEASURES = ("avg", "pass", "length", "stop")  # percent, percent, tokens, percent


@dataclass(frozen=True)
class Scores:
    """One evaluated model: by benchmark (and "mean" where there are several) its measures."""

    n: int  # samples a problem
    benchmarks: dict[str, dict[str, float]]
    parts: list[str]  # benchmarks of which problems were left out


@dataclass(frozen=True)
class Steps:
    """The steps of one run, from metrics.jsonl, in order."""

    seconds: list[float]
    norms: list[float]  # of gradients, those that are finite
    peak_gib: float
    planned_gib: float | None  # as the run itself foresaw it
    dropped: int


@dataclass(frozen=True)
class Results:
    """What is done, each read once: by task."""

    scores: dict[str, Scores]
    steps: dict[str, Steps]


def read_results(queue: Queue) -> Results:
    done = queue.in_state(DONE)
    scores = {task.name: found for task in done if (found := read_scores(queue, task))}
    return Results(scores, {task.name: steps for task in done if (steps := read_steps(queue, task))})


def is_trained(queue: Queue, task: Task) -> bool:
    """Whether a run has taken all of its steps."""
    summary = read_json(queue.run_folder(task) / "summary.json") or {}
    return summary.get("finished") is True and summary.get("steps") == queue.pairs[task.pair].steps


def read_scores(queue: Queue, task: Task) -> Scores | None:
    """Returns what a task's evaluation found, None if it did not end, or its file is missing or damaged."""
    found = read_json(queue.scores_folder(task) / "results.json")
    try:
        n, rows = found["n"], dict(found["benchmarks"])
        parts = [name for name, row in rows.items() if not row.get("whole")]
        rows |= {"mean": found["mean"]} if len(rows) > 1 else {}
        return Scores(n, {name: _measures(row, n) for name, row in rows.items()}, parts)
    except (KeyError, TypeError, AttributeError):
        return None


def _measures(row: dict[str, Any], n: int) -> dict[str, float]:
    shares = {"avg": row[f"avg@{n}"], "pass": row[f"pass@{n}"], "stop": 1 - row["truncated"]}
    return {"length": row["length"], **{measure: 100 * share for measure, share in shares.items()}}


def read_steps(queue: Queue, task: Task) -> Steps | None:
    """Returns the steps that a run has taken; None for none."""
    try:
        text = (queue.run_folder(task) / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in map(json.loads, text.splitlines()) if "optim/grad_norm" in line]
    if not lines:
        return None
    return Steps(
        seconds=[float(line["time/step"]) for line in lines],
        norms=[norm for line in lines if math.isfinite(norm := float(line["optim/grad_norm"]))],
        peak_gib=max(float(line["memory/peak_gib"]) for line in lines),
        planned_gib=lines[-1].get("memory/planned_gib"),
        dropped=sum(bool(line.get("optim/skipped")) for line in lines),
    )


def read_json(file: Path) -> Any:
    """Returns what a JSON file holds; None if it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
