"""What the runs of a queue left behind, as numbers: scores of their evaluations, and what their steps took."""

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poweropd_lite.reproduce.grid import Task, run_folder, scores_folder

MEASURES = ("avg", "pass", "length", "stop")  # percent, percent, tokens, percent


@dataclass(frozen=True)
class Scores:
    """One evaluated model: by benchmark (and "mean" where there are several) its measures. `whole`: nothing was left out."""

    n: int
    benchmarks: dict[str, dict[str, float]]
    whole: dict[str, bool]


@dataclass(frozen=True)
class Steps:
    """The steps of one run, from metrics.jsonl, in order."""

    seconds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    peak_gib: float = 0.0
    length: float = 0.0  # mean completion of the last steps, tokens
    tokens_per_second: float = 0.0  # of the rollouts alone
    dropped: int = 0
    planned_gib: float | None = None  # as the run itself foresaw it

    @property
    def largest_norm(self) -> float | None:
        """The largest finite gradient norm of any step."""
        finite = [norm for norm in self.norms if math.isfinite(norm)]
        return max(finite) if finite else None


def trained(out: Path, task: Task, steps: int) -> bool:
    """Whether a run has taken all of its steps."""
    summary = _read_json(run_folder(out, task) / "summary.json")
    return bool(summary) and summary.get("finished") is True and summary.get("steps") == steps


def scored(out: Path, task: Task, steps: int) -> bool:
    """Whether a task has been evaluated to the end, and its results can be read."""
    return read_scores(out, task, steps) is not None


def read_scores(out: Path, task: Task, steps: int) -> Scores | None:
    """Returns what a task's evaluation found, None if its file is missing or damaged."""
    found = _read_json(scores_folder(out, task, steps) / "results.json")
    try:
        n = found["n"]
        rows = dict(found["benchmarks"])
        whole = {name: bool(row.get("whole")) for name, row in rows.items()}
        if len(rows) > 1:
            rows["mean"] = found["mean"]
        return Scores(n, {name: _measures(row, n) for name, row in rows.items()}, whole)
    except (KeyError, TypeError, AttributeError):
        return None


def _measures(row: dict[str, Any], n: int) -> dict[str, float]:
    return {
        "avg": 100 * row[f"avg@{n}"],
        "pass": 100 * row[f"pass@{n}"],
        "length": row["length"],
        "stop": 100 * (1 - row["truncated"]),
    }


def read_steps(out: Path, task: Task) -> Steps:
    """Returns the steps that a run has taken so far; none where it has not begun."""
    lines = []
    try:
        text = (run_folder(out, task) / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return Steps()
    for line in text.split("\n"):
        try:
            values = json.loads(line)
        except ValueError:  # the last one, being written just now
            continue
        if isinstance(values, dict) and "optim/grad_norm" in values and "time/step" in values:
            lines.append(values)
    if not lines:
        return Steps()
    late = lines[-max(1, len(lines) // 4) :]
    # Tokens of a step over the seconds of its rollouts alone; time/tokens_per_second counts the whole step.
    speeds = [
        float(v["time/tokens_per_second"]) * float(v["time/step"]) / max(float(v["time/rollout"]), 1e-9) for v in late
    ]
    return Steps(
        [float(v["time/step"]) for v in lines],
        [float(v["optim/grad_norm"]) for v in lines],
        max(float(v["memory/peak_gib"]) for v in lines),
        statistics.fmean(float(v["rollout/length"]) for v in late),
        statistics.median(speeds),
        sum(bool(v.get("optim/skipped")) for v in lines),
        lines[-1].get("memory/planned_gib"),
    )


def count_samples(folder: Path) -> int:
    """Returns how many answers of an evaluation are there."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
