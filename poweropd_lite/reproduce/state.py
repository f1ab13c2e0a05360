"""The folder of a queue and its state file, queue.json: what was asked for, and where every task of it stands.

The file is whole at every moment, and the folder locked by the process that works on it. Tasks are never taken out.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import try_lock, write_json, write_text
from poweropd_lite.reproduce.grid import State, Task, load_pair, pair_settings
from poweropd_lite.reproduce.settings import AXES, COLUMNS, REWARDS, SCORING, TRUNCATED

VERSION = 2


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
        write_json(self.out / "queue.json", {k: v for k, v in data.items() if k != "out"})  # a folder may be moved

    def in_state(self, *states: State) -> list[Task]:
        return [task for task in self.tasks.values() if task.state in states]

    def run_folder(self, task: Task) -> Path:
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
        return _queue(out, json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} can't be read ({reason}); its runs are whole: type --out with a new folder") from None
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no queue (queue.json); type --out with the name of a new folder")
    return None


def _queue(out: Path, data: dict[str, Any]) -> Queue:
    """Raises an error of some kind for what no queue writes: a file that was cut would make tables of less."""
    if data["version"] != VERSION:
        raise ValueError(f"it is of version {data['version']}, and this program reads {VERSION}")
    for name, values in data["pairs"].items():
        if missing := {"student", "teacher", "steps"} - set(values):
            raise ValueError(f"pair {name} lacks {', '.join(sorted(missing))}")
    pairs = {name: load_pair(None, values) for name, values in data["pairs"].items()}
    parts = {part: data[part] for part in ("training", "forecasts", "tasks")}
    parts |= {"axes": {axis: data["axes"][axis] for axis in AXES}, "scoring": {k: data["scoring"][k] for k in SCORING}}
    queue = TypeAdapter(Queue).validate_python({**parts, "out": out, "pairs": pairs})
    for name, task in queue.tasks.items():
        known = name == task.name and task.pairs and set(task.pairs) <= set(pairs)
        if task.role == "run":
            known = known and task.reward in REWARDS and task.column in {*COLUMNS, TRUNCATED}
            known = known and (task.reward == "power") == (task.alpha is not None)
        if not known:
            raise ValueError(f"{name} is no task of this grid")
    return queue


def write_pairs(folder: Path, pairs: dict[str, Config]) -> None:
    """Writes NAME.yaml for every pair, which its runs are given with --config."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in pairs.items():
        text = yaml.safe_dump(pair_settings(pair), sort_keys=False, allow_unicode=True)
        write_text(folder / f"{name}.yaml", text)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes the queue's folder and holds its lock; raises UserError if another process has it."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write into {out}: {error.strerror}; type --out with another folder") from None
    if (lock := try_lock(out / ".lock", "--out")) is None:
        raise UserError(f"another process is working on the queue in {out}; wait for it, or type another --out")
    try:
        yield
    finally:
        os.close(lock)
