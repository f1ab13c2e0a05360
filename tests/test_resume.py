"""Interrupted plus resumed equals uninterrupted, bit for bit, after Ctrl-C, SIGTERM, and SIGKILL in the middle of a save."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import quick_flags, run_train

from poweropd_lite.checkpoint import checkpoints

FLAGS = ["--config", "bundled", *quick_flags(steps=6), "--output", "run"]

# Runs the train command in a process that kills itself, for good, at the n-th call of os.fsync or os.replace.
KILLED = """
import os, signal, sys
name, left = sys.argv[1], int(sys.argv[2])
real = getattr(os, name)
def counted(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, name, counted)
from poweropd_lite import train
sys.exit(train.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_train(*FLAGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return result(folder / "run")


def result(run: Path):
    """The adapter's bytes, the optimizer's, and every metric but time and memory."""
    metrics = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    last = checkpoints(run / "checkpoints")[-1]
    files = [run / "adapter" / "adapter_model.safetensors", last / "optimizer.safetensors", run / "samples.jsonl"]
    return metrics, *(file.read_bytes() for file in files)


def resume(folder: Path):
    done = run_train("--resume", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.old"))
    return done.stdout


@pytest.mark.parametrize(("number", "after", "code"), [(signal.SIGINT, 3, 130), (signal.SIGTERM, 1, 143)])
def test_a_signal_finishes_the_step_saves_and_exits(tmp_path, uninterrupted, number, after, code):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "poweropd_lite.train", *FLAGS], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith(f"step {after}/6"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait() == code
    assert "stopping after this step" in rest and "--resume run" in rest
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] is False and after <= summary["steps"] < 6
    assert f"resuming run at step {summary['steps']} of 6" in resume(tmp_path)
    assert result(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(
    ("call", "count"),
    [("fsync", 2), ("fsync", 6), ("replace", 4), ("fsync", 14)],
    ids=["in the first files", "in the first checkpoint", "before its rename", "in the second checkpoint"],
)
def test_sigkill_in_the_middle_of_a_save_loses_nothing(tmp_path, uninterrupted, call, count):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, call, str(count), *FLAGS], cwd=tmp_path, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    resume(tmp_path)
    assert result(tmp_path / "run") == uninterrupted


def test_more_steps_continue_the_same_run(tmp_path, uninterrupted):
    flags = ["--config", "bundled", *quick_flags(steps=4), "--output", "run"]
    assert run_train(*flags, cwd=tmp_path).returncode == 0
    done = run_train("--resume", "run", "--steps", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run") == uninterrupted


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    assert run_train(*FLAGS, cwd=tmp_path).returncode == 0
    assert "finished at step 6 of 6" in resume(tmp_path)
    assert result(tmp_path / "run") == uninterrupted


def test_two_runs_never_write_into_one_folder(tmp_path):
    flags = ["--config", "bundled", *quick_flags(steps=200), "--output", "run"]
    first = subprocess.Popen(
        [sys.executable, "-u", "-m", "poweropd_lite.train", *flags], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        for line in first.stdout:
            if line.startswith("evaluation at step 0"):
                break
        before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
        second = run_train("--resume", "run", cwd=tmp_path)
        assert second.returncode == 2
        assert "another process is training in run" in second.stderr
        again = run_train(*flags, cwd=tmp_path)
        assert again.returncode == 2 and "run is not empty" in again.stderr
        assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before
    finally:
        first.kill()
        first.wait()


def test_a_damaged_checkpoint_is_named(tmp_path):
    assert run_train(*FLAGS, cwd=tmp_path).returncode == 0
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    (last / "trained.safetensors").write_bytes(b"half")
    done = run_train("--resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run/checkpoints/step_000006 is damaged" in done.stderr and "Traceback" not in done.stderr


def test_unnamed_runs_get_folders_of_their_own(tmp_path):
    flags = ["--config", "bundled", *quick_flags(steps=1, eval_problems=1, eval_samples=1)]
    for _ in range(2):
        assert run_train(*flags, cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["power10-seed0", "power10-seed0-2"]


def test_the_clock_of_a_resumed_run_counts_both_sittings(tmp_path):
    flags = ["--config", "bundled", *quick_flags(steps=4), "--output", "run"]
    assert run_train(*flags, cwd=tmp_path).returncode == 0
    first = json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]
    started = time.monotonic()
    assert run_train("--resume", "run", "--steps", "6", cwd=tmp_path).returncode == 0
    took = time.monotonic() - started
    both = json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]
    assert first["student"] < both["student"] < first["student"] + took
    assert os.path.isdir(tmp_path / "run" / "adapter")
