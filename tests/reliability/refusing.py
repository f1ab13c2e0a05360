"""What a refusal is, and how a case of bad input is run: the real command, in a process of its own, under limits."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forked import Server

from poweropd_lite.base.files import digest

HERE = Path(__file__).parent
TINY = HERE.parents[1] / "poweropd_lite" / "tiny"
MOST_OUTPUT = 100_000  # bytes
MOST_NOTICES = 3  # lines that a library may have said of something else before
PROBLEMS = "".join(f'{{"problem": "Compute {i} + 1.", "answer": "{i + 1}"}}\n' for i in range(8))
# A training that would end in a second, on problems.jsonl.
TRAIN = "train --config bundled --data problems.jsonl --steps 1 --batch-size 2 --eval-benchmarks none --output out"
EVALUATE = "evaluate --benchmarks problems.jsonl --n 1 --max-new-tokens 4 --output out"

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One bad input. `make` lays it into the folder that the command runs in, beside problems.jsonl."""

    name: str
    command: str
    says: tuple[str, ...] = ()  # words of the message
    make: Make | None = None
    code: int = 2  # 2 is bad input; another is what docs say for that command
    env: dict[str, str] = field(default_factory=dict)
    needs_run: bool = False  # a trained run lies in run/


def files(**texts: str | bytes) -> Make:
    """Returns what writes files; `__` in a name stands for a dot."""

    def make(folder: Path) -> None:
        for name, text in texts.items():
            path = folder / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def fault(case: Case, server: Server, folder: Path, run: Path | None) -> str | None:
    """Runs a case in the new folder `folder`; returns what is wrong with how it ended, or None. `run` is a trained run."""
    folder.mkdir(parents=True)
    (folder / "problems.jsonl").write_text(PROBLEMS)
    if case.needs_run:
        assert run is not None
        shutil.copytree(run, folder / "run")
    if case.make is not None:
        case.make(folder)
    before = listing(folder)
    command = [str(HERE / "limited.py"), *shlex.split(case.command)]
    how = {"cwd": folder, "env": {**os.environ, **case.env}, "timeout": 120}
    if case.env:  # read as Python starts: in a fresh one
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, errors="replace", **how)
    else:
        done = server.run(*command, **how)
    said, size = done.stderr, len(done.stderr.encode()) + len(done.stdout.encode())
    if done.returncode != case.code:
        return f"exit code {done.returncode}, not {case.code}: {(said or done.stdout)[-1500:]}"
    if size > MOST_OUTPUT:
        return f"{size:,} bytes of output"
    if "Traceback" in said + done.stdout:
        return f"a traceback: {said[-1500:]}"
    notices, error, _ = said.partition("error: ")
    if case.code == 2 and (not error or notices.count("\n") > MOST_NOTICES or "\nerror: " in said[len(notices) + 1 :]):
        return f"not one message: {said[:1500]}"
    if ran := [path for path in folder.rglob("it-ran")]:
        return f"code of another ran: {ran[0]}"
    if absent := [word for word in case.says if word not in said]:
        return f"no {absent} in {said[:1500]!r}"
    if case.code == 2 and (new := listing(folder).items() - before.items()):
        return f"left behind or changed: {sorted(name for name, _ in new)}"
    return None


def listing(folder: Path) -> dict[str, str]:
    """Returns what lies in a folder and what it holds, but for locks, which hold nothing."""
    found = (p for p in folder.rglob("*") if p.name != ".lock")
    return {str(p.relative_to(folder)): digest(p) if p.is_file() else "" for p in found}
