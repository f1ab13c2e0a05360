"""The folder of a queue: its state file, queue.json, and what its tasks left behind, as numbers.

The file is whole at every moment, and the folder locked by the process that works on it. Tasks are never taken out.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import parse_json, read_json, try_lock, write_json, write_text
from poweropd_lite.reproduce.grid import DONE, State, Task, load_pair, pair_settings
from poweropd_lite.reproduce.settings import AXES, BESIDE, COLUMNS, REWARDS, SCORING, TRUNCATED
from poweropd_lite.rewards.table import reward_of

VERSION = 3
MEASURES = ("avg", "pass", "length", "stop")  # percent, percent, tokens, percent


@dataclass(frozen=True)
class Forecast:
    """What plan says of a pair's runs of one kind (Task.kind) on a machine."""

    machine: str
    needed_bytes: int
    usable_bytes: int | None  # None: of any machine
    fits: bool | None
    changes: dict[str, Any] | None  # the settings with which it fits; None: nothing helps
    tflops: float  # of a step, as this program makes them (docs/plan.md)
    paper_tflops: float  # of an update, counted as the paper does
    step_seconds: float | None  # None where it knows no time, as on a CPU
    evaluation_seconds: float | None = None


@dataclass
class Queue:
    """A queue in memory; `save` writes it down."""

    out: Path
    axes: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in AXES})
    scoring: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SCORING))
    training: dict[str, Any] = field(default_factory=dict)  # training's flags, for pairs that join
    pairs: dict[str, Config] = field(default_factory=dict)
    forecasts: dict[str, dict[str, Forecast | None]] = field(default_factory=dict)  # by pair and kind; None: plan can't
    tasks: dict[str, Task] = field(default_factory=dict)

    def save(self) -> None:
        pairs = {name: pair_settings(pair) for name, pair in self.pairs.items()}
        data = asdict(self) | {"version": VERSION, "pairs": pairs}
        data.pop("out")  # a folder may be moved
        write_json(self.out / "queue.json", {"sha256": _digest(data), **data})

    def in_state(self, *states: State) -> list[Task]:
        return [task for task in self.tasks.values() if task.state in states]

    def run_folder(self, task: Task) -> Path:
        """Returns the folder of a run; a model that is only scored has none."""
        return self.out / "runs" / task.name

    def scores_folder(self, task: Task) -> Path:
        """Returns the folder of a task's evaluation: for a run, where evaluate itself would put it."""
        if task.role == "run":
            return self.run_folder(task) / "eval" / f"step_{self.pairs[task.pair].steps:06}"
        return self.out / "evaluations" / task.name


def read_queue(out: Path) -> Queue | None:
    """Returns the queue in a folder, None where there is none; raises UserError where it holds something else."""
    file = out / "queue.json"
    try:
        data = read_json(file)
        if data["version"] != VERSION:
            raise ValueError(f"it is of version {data['version']}, and this program reads {VERSION}")
        if data.pop("sha256") != _digest(data):
            raise ValueError("it does not hold what was written")
        return _queue(out, data)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file} can't be read ({reason}); its runs are whole: type --output with a new folder"
        ) from None
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            f"{out} is not empty and holds no queue (queue.json); type --output with the name of a new folder"
        )
    return None


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _queue(out: Path, data: dict[str, Any]) -> Queue:
    """Raises an error of some kind for what no queue writes: a file that was cut would make tables of less."""
    for name, values in data["pairs"].items():
        if missing := {"student", "teacher", "steps"} - set(values):
            raise ValueError(f"pair {name} lacks {', '.join(sorted(missing))}")
    pairs = {name: load_pair(None, values) for name, values in data["pairs"].items()}
    parts = {part: data[part] for part in ("training", "forecasts", "tasks")}
    parts |= {"axes": {axis: data["axes"][axis] for axis in AXES}, "scoring": {k: data["scoring"][k] for k in SCORING}}
    queue = TypeAdapter(Queue).validate_python({**parts, "out": out, "pairs": pairs})
    for name, task in queue.tasks.items():
        cell = task.reward in REWARDS and task.column in {*COLUMNS, *BESIDE, TRUNCATED}
        cell = cell and ("alpha" in reward_of(task.reward).settings) == (task.alpha is not None)
        known = name == task.name and task.pairs and set(task.pairs) <= set(pairs)
        if not (known and (cell or task.role != "run")):
            raise ValueError(f"{name} is no task of this grid")
    return queue


def write_pairs(folder: Path, pairs: dict[str, Config]) -> None:
    """Writes NAME.yaml for every pair, which its runs are given with --config."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in pairs.items():
        write_text(folder / f"{name}.yaml", yaml.safe_dump(pair_settings(pair), sort_keys=False, allow_unicode=True))


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes the queue's folder and holds its lock; raises UserError if another process has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write into {out}: {error.strerror}; type --output with another folder") from None
    if (lock := try_lock(out / ".lock", "--output")) is None:
        raise UserError(f"another process is working on the queue in {out}; wait for it, or type another --output")
    try:
        yield
    finally:
        os.close(lock)


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
    scores: dict[str, Scores]  # by task, of what is done
    steps: dict[str, Steps]


def read_results(queue: Queue) -> Results:
    done = queue.in_state(DONE)
    scores = {task.name: found for task in done if (found := read_scores(queue, task))}
    return Results(scores, {task.name: steps for task in done if (steps := read_steps(queue, task))})


def is_trained(queue: Queue, task: Task) -> bool:
    """Whether a run has taken all of its steps."""
    summary = json_or_none(queue.run_folder(task) / "summary.json") or {}
    return summary.get("finished") is True and summary.get("steps") == queue.pairs[task.pair].steps


def read_scores(queue: Queue, task: Task) -> Scores | None:
    """Returns what a task's evaluation found, None if it did not end, or its file is missing or damaged."""
    found = json_or_none(queue.scores_folder(task) / "results.json")
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
    file = queue.run_folder(task) / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]  # a run in hand may be at its last line
    lines = [line for line in map(parse_json, whole.splitlines()) if "tokens/loss" in line]
    if not lines:
        return None
    norms = (float(line.get("optim/grad_norm", "nan")) for line in lines)  # none where no token was in the loss
    return Steps(
        seconds=[float(line["time/step"]) for line in lines],
        norms=[norm for norm in norms if math.isfinite(norm)],
        peak_gib=max(float(line["memory/peak_gib"]) for line in lines),
        planned_gib=lines[-1].get("memory/planned_gib"),
        dropped=sum(bool(line.get("optim/skipped")) for line in lines),
    )


def json_or_none(file: Path) -> Any:
    """Returns what a JSON file holds; None if it is missing or damaged."""
    try:
        return read_json(file)
    except (OSError, ValueError):
        return None
