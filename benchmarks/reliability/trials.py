"""What the scripts here share: the small run that they break, whether two folders hold the same, and the count of it all.

Commands are forked (tests/forked.py): a training of three steps takes two seconds.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update({"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"})
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import forked  # noqa: E402
import same_results  # noqa: E402
from same_results import differing  # noqa: E402

from poweropd_lite.evaluate.agenda import versions  # noqa: E402

DATA = str(ROOT / "tests" / "problems.jsonl")
SIZES = {"batch-size": 4, "max-new-tokens": 40, "eval-max-new-tokens": 40}  # as tests/forked.py has traced it
SMALL = {**SIZES, "steps": 3, "save-every": 1, "keep-checkpoints": 2, "eval-every": 2, "eval-problems": 2, "eval-samples": 1, "kl-prompts": 2, "data": DATA}  # fmt: skip


def flags(values: dict[str, Any]) -> list[str]:
    """Returns settings as flags."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


TRAIN = ["poweropd_lite.train", "--config", "bundled", *flags(SMALL), "--output", "run"]
RESUME = ["poweropd_lite.train", "--resume", "run"]


def run(*command: str, cwd: Path, plan: dict[str, Any] | None = None, timeout: float = 300) -> Any:
    """Runs a module with its flags, planted if there is a plan (planted.py); returns what subprocess.run would."""
    if plan is None:
        return forked.run("-m", *command, cwd=cwd)
    planted = str(HERE / "planted.py")
    return forked.run(planted, json.dumps({"log": None, **plan}), *command, cwd=cwd)


def writes_of(*command: str, cwd: Path) -> list[str]:
    """Runs a command and returns each of its writes, in order, as kind and path."""
    log = cwd.parent / f"{cwd.name}.writes"
    done = run(*command, cwd=cwd, plan={"at": -1, "fault": "none", "log": str(log)})
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text(encoding="utf-8").splitlines()


def one_message(done: Any, lines: int = 12) -> str | None:
    """Returns what is wrong with how a command refused: it should end with code 2 and one short message; None if it did."""
    said = done.stderr.strip().splitlines()
    if done.returncode != 2:
        return f"code {done.returncode}: {' / '.join(said[-3:])[-400:]}"
    if "Traceback" in done.stderr or sum(line.startswith("error: ") for line in said) != 1 or len(said) > lines:
        return f"no one message: {done.stderr[-600:]}"
    return None


def numbers(value: Any) -> Any:
    """Returns a JSON value without what may differ; a queue's forecasts are of the memory that is free."""
    value = same_results.numbers(value)
    if isinstance(value, dict) and "tasks" in value:
        return {k: v for k, v in value.items() if k not in ("forecasts", "sha256")} | {
            "tasks": numbers_of(value["tasks"])
        }
    return value


def numbers_of(tasks: dict[str, Any]) -> dict[str, Any]:
    """A queue's tasks, but how many were at work beside each."""
    return {name: {k: v for k, v in task.items() if k != "side_by_side"} for name, task in tasks.items()}


def contents(folder: Path) -> dict[str, Any]:
    """Returns what every file below a folder holds, without what may differ between two runs; of prose, that it is there."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.name == ".lock" or file.suffix == ".lock":
            continue
        name = str(file.relative_to(folder))
        if file.is_dir():
            found[name + "/"] = "folder"
        elif file.parent.name.startswith("damaged_"):
            found[name] = "set aside"
        elif file.name == "manifest.json":
            listed = json.loads(file.read_text(encoding="utf-8"))["sha256"]
            found[name] = listed | {k: "" for k in listed if k == "state.json"}
        elif file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").split("\n")
            found[name] = [numbers(json.loads(line)) for line in lines if line]
        elif file.suffix == ".json":
            found[name] = numbers(json.loads(file.read_text(encoding="utf-8")))
        else:
            whole = file.suffix in (".safetensors", ".gguf", ".yaml") or file.name == "tables.csv"
            found[name] = file.read_bytes() if whole else "there"
    return found


@dataclass
class Tally:
    """How many were tried and which were lost; `close` prints the line and writes results/NAME.json."""

    name: str
    short: bool
    what: str  # is tried, in a line
    lost: list[str] = field(default_factory=list)
    tried: int = 0
    more: dict[str, Any] = field(default_factory=dict)  # figures of its own
    started: float = field(default_factory=time.monotonic)

    def tell(self, fault: str | None, where: str) -> None:
        """Counts a try; `fault` is what went wrong, None if nothing did."""
        self.tried += 1
        if fault is not None:
            self.lost.append(f"{where}: {fault}")
            print(f"LOST {where}: {fault}", flush=True)
        elif self.tried % 25 == 0:
            print(f"{self.tried} tried, {len(self.lost)} lost", flush=True)

    def close(self) -> int:
        """Returns the exit code: 1 if one was lost."""
        survived = self.tried - len(self.lost)
        print(f"{self.name}: tried {self.tried}, survived {survived}, lost {len(self.lost)}", flush=True)
        if not self.short:
            found = {
                "test": self.what,
                "command": f"python benchmarks/reliability/{self.name}.py {shlex.join(sys.argv[1:])}".strip(),
                "tried": self.tried,
                "survived": survived,
                "lost": self.lost,
                **self.more,
                "minutes": round((time.monotonic() - self.started) / 60, 1),
                "versions": versions("torch", "transformers", "peft", "safetensors"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }
            text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
            (HERE / "results" / f"{self.name}.json").write_text(text, encoding="utf-8")
        return 1 if self.lost else 0


def parser(what: str, tries: int, short: int) -> argparse.ArgumentParser:
    """Returns a parser with --tries, --seed and --short, which takes `short` tries and writes no results."""
    made = argparse.ArgumentParser(description=what)
    made.add_argument("--tries", type=int, default=tries)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--short", action="store_const", const=short, default=0, help=f"{short} tries, no results file")
    return made


class Folders:
    """Folders to break things in, each gone when its try is over."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="reliability-"))
        self.number = 0

    def new(self, like: Path | None = None) -> Path:
        """Returns a new folder, a copy of `like` if it is given."""
        self.number += 1
        place = self.root / f"{self.number:05}"
        shutil.copytree(like, place, symlinks=True) if like else place.mkdir()
        return place

    def __enter__(self) -> "Folders":
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["chmod", "-R", "u+w", str(self.root)], check=False)
        shutil.rmtree(self.root, ignore_errors=True)


def trained(folders: Folders) -> Path:
    """Returns a folder with run/, the small run, undisturbed."""
    place = folders.new()
    done = run(*TRAIN, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def first_difference(whole: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Returns how a folder's contents are not those of the undisturbed one; None if they are."""
    if extra := sorted(set(found) - set(whole)):
        return f"stray {', '.join(extra[:4])}"
    if absent := sorted(set(whole) - set(found)):
        return f"missing {', '.join(absent[:4])}"
    places = [f"{name}{place}" for name in whole for place in differing(whole[name], found[name])]
    return f"differs: {', '.join(places[:4])}" if places else None


Command = Callable[[Path], list[str]]
