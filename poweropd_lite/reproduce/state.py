"""The folder of a queue and its state file, queue.json: what was asked for, and where every run of it stands.

The file is whole at every moment, and the folder locked by the process that works on it. Runs are never taken out; others join.
"""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.reproduce.grid import Task, read_task
from poweropd_lite.reproduce.settings import AXES, COLUMNS, REWARDS, SCORING, TRUNCATED

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
STATES = (WAITING, RUNNING, DONE, FAILED)
PARTS = ("axes", "scoring", "training", "pairs", "plans", "runs")  # of queue.json
VERSION = 1


class Queue:
    """A queue's state in memory; `save` writes it down. `runs` has by name the task, its state and what it took."""

    def __init__(self, out: Path, data: dict[str, Any] | None = None) -> None:
        self.out = out
        if data is None:
            axes, scoring = {name: [] for name in AXES}, dict.fromkeys(SCORING)
            data = dict(zip(PARTS, (axes, scoring, {}, {}, {}, {}), strict=True))
        self.axes: dict[str, list[str]] = data["axes"]
        self.scoring: dict[str, Any] = data["scoring"]
        self.training: dict[str, Any] = data["training"]
        self.pairs: dict[str, dict[str, Any]] = data["pairs"]
        self.plans: dict[str, dict[str, Any]] = data["plans"]
        self.runs: dict[str, dict[str, Any]] = data["runs"]

    def save(self) -> None:
        """Writes queue.json in one step."""
        write_json(self.out / "queue.json", {"version": VERSION, **{key: getattr(self, key) for key in PARTS}})

    def add(self, task: Task) -> None:
        """Puts a task in the queue, or another pair into the tables of one that is there."""
        if task.name in self.runs:
            there = self.runs[task.name]
            there["pairs"] = list(dict.fromkeys([*there["pairs"], *task.pairs]))
            return
        stage = "train" if task.role == "run" else "evaluate"
        rest = {"state": WAITING, "stage": stage, "seconds": {}, "message": None, "log": f"logs/{task.name}.log"}
        self.runs[task.name] = task.record() | rest

    def tasks(self, *states: str) -> list[Task]:
        """Returns the tasks in any of `states`, or all of them."""
        return [read_task(r) for r in self.runs.values() if not states or r["state"] in states]

    def steps(self, task: Task) -> int:
        """How many optimizer steps a task's pair takes."""
        return self.pairs[task.pair]["steps"]


def read_queue(out: Path) -> Queue | None:
    """Returns the queue in a folder, None where there is none; raises UserError for a folder or file that is something else."""
    file = out / "queue.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"it is of version {data['version']}, and this program reads {VERSION}")
        _check(data)
        return Queue(out, data)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise UserError(f"{out} is a file; type --out with the name of a folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{file} can't be read ({error}); its runs are whole: type --out with a new folder") from None
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no queue (queue.json); type --out with the name of a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; type --out with the name of a folder")
    return None


def _check(data: dict[str, Any]) -> None:
    """Raises an error of some kind for what no queue writes: a file that was cut or edited would make tables of less."""
    for part in PARTS:
        if not isinstance(data[part], dict):
            raise ValueError(f"{part} is no object")
    for part, keys in (("axes", AXES), ("scoring", SCORING)):
        if set(data[part]) != set(keys):
            raise ValueError(f"{part} should have {', '.join(keys)}")
    columns, steps = {*COLUMNS, TRUNCATED}, {}
    for name, values in data["pairs"].items():
        if missing := {"student", "teacher", "steps"} - set(values):
            raise ValueError(f"pair {name} lacks {', '.join(sorted(missing))}")
        steps[name] = load_config(**values | {"score": "full"}).steps
    for name, record in data["runs"].items():
        task = read_task(record)
        known = record["state"] in STATES and record["stage"] in ("train", "evaluate") and task.pair in steps
        if task.role == "run":
            known = known and task.reward in REWARDS and task.column in columns and task.seed is not None
            known = known and (task.reward == "power") == (task.alpha is not None)
        if not known or task.name != name or not isinstance(record["seconds"], dict):
            raise ValueError(f"{name} is no run of this grid")


@contextlib.contextmanager
def locked(out: Path):
    """Makes the queue's folder and holds its lock; raises UserError if another process has it."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        lock = try_lock(out / ".lock")
    except OSError as error:
        raise UserError(f"can't write into {out}: {error.strerror}; type --out with another folder") from None
    if lock is None:
        raise UserError(f"another process is working on the queue in {out}; wait for it, or type another --out")
    try:
        yield
    finally:
        os.close(lock)


def try_lock(path: Path) -> int | None:
    """Returns an open file that holds the lock of `path`, None if another process has it. The lock goes with its last holder."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise UserError(f"can't lock {path}: {error.strerror}; type --out on a disk with file locks") from None
    return handle


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a folder (a run's, an evaluation's)."""
    if not (path / ".lock").exists():
        return False
    lock = try_lock(path / ".lock")
    if lock is not None:
        os.close(lock)
    return lock is None


def write_pairs(folder: Path, pairs: dict[str, dict[str, Any]]) -> None:
    """Writes NAME.yaml for every pair, which its runs are given with --config."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    for name, values in pairs.items():
        write_text(folder / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
