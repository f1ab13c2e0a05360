"""Interrupted plus resumed equals uninterrupted, bit for bit, after Ctrl-C, SIGTERM, and SIGKILL in the middle of a save."""

import json
import shutil
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from conftest import quick_flags, run_python, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_manifest
from poweropd_lite.run.checkpoint import checkpoints
from poweropd_lite.run.metrics import JsonLines
from poweropd_lite.train import train

SHORT = {"max_new_tokens": 40, "eval_max_new_tokens": 40, "eval_problems": 4, "batch_size": 4}
FLAGS = ["--config", "bundled", *quick_flags(steps=6, **SHORT), "--output", "run"]

# Runs the train command in a process that kills itself, for good, just before os.fsync or os.replace of a given path.
KILLED = """
import os, signal, sys
name, end = sys.argv[1:3]
real = getattr(os, name)
def watched(*args):
    path = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
    if path.endswith(end):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, name, watched)
from poweropd_lite.train import __main__ as train
sys.exit(train.main(sys.argv[3:]))
"""

# Runs the train command in a process that sends itself a signal when the rollouts of a step are sampled.
SIGNALLED = """
import os, sys
from poweropd_lite.cli import run_command
from poweropd_lite.run.session import Prepared
from poweropd_lite.train import __main__ as command
number, left = map(int, sys.argv[1:3])
real = Prepared.sample
def sampled(*args):
    global left
    rollouts = real(*args)
    if left == 0:
        os.kill(os.getpid(), number)
    left -= 1
    return rollouts
Prepared.sample = sampled
run_command(lambda: command.main(sys.argv[3:]))
"""


def killed_at(call: str, end: str, folder: Path) -> list[str]:
    """Runs the command until it kills itself there; returns the names of the whole checkpoints it leaves."""
    done = forked.run("-c", KILLED, call, end, *FLAGS, cwd=folder)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return [path.name for path in checkpoints(folder / "run" / "checkpoints")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """By a Python started anew: what the others are compared with was forked (tests/forked.py)."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_python("-m", "poweropd_lite.train", *FLAGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return result(folder / "run")


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    done = run_train("--config", "bundled", *quick_flags(steps=4, **SHORT), "--output", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def result(run: Path):
    """The adapter's bytes, the optimizer's, and every metric but time and memory."""
    metrics = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    last = checkpoints(run / "checkpoints")[-1]
    files = [run / "adapter" / "adapter_model.safetensors", last / "optimizer.safetensors"]
    files += [run / "samples.jsonl", run / "tokens.jsonl"]
    return metrics, *(file.read_bytes() for file in files)


def resume(folder: Path):
    done = run_train("--resume", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.old"))
    return done.stdout


@pytest.mark.parametrize(
    ("number", "after", "code"), [(signal.SIGINT, 3, 130), (signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)]
)
def test_a_signal_finishes_the_step_saves_and_exits(tmp_path, uninterrupted, number, after, code):
    """The signal comes in the middle of the step behind `after`, when its rollouts are sampled."""
    done = forked.run("-c", SIGNALLED, str(int(number)), str(after), *FLAGS, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "stopping after this step" in done.stdout and "--resume run" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] is False and summary["steps"] == after + 1
    assert f"resuming run at step {after + 1} of 6" in resume(tmp_path)
    assert result(tmp_path / "run") == uninterrupted


# Sends itself a signal where a model's tokenizer is asked for, which then waits, as the hub's library does between retries.
LOADING = """
import os, sys, time
from poweropd_lite.cli import main, run_command
from transformers import AutoTokenizer
def waiting(*args, **options):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)
AutoTokenizer.from_pretrained = waiting
run_command(lambda: main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("number", "flags", "said"),
    [
        (signal.SIGINT, ["train", *FLAGS], "stopped while loading: there was nothing to save"),
        (signal.SIGTERM, ["audit"], "stopped; nothing is written"),
    ],
)
def test_a_signal_while_models_load_ends_it_at_once(tmp_path, number, flags, said):
    done = forked.run("-c", LOADING, str(int(number)), *flags, cwd=tmp_path)
    assert done.returncode == 128 + number and done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line.startswith("stop")] == [said]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "end", "left"),
    [
        ("fsync", ".step_000002.tmp/optimizer.safetensors", []),
        ("replace", "checkpoints/step_000002", []),
        ("fsync", ".step_000004.tmp/state.json", ["step_000002"]),
        ("replace", "run/adapter", ["step_000004", "step_000006"]),
        ("replace", "run/summary.json", ["step_000004", "step_000006"]),
    ],
    ids=["in the first checkpoint", "before its rename", "in the second", "handing over", "before the summary"],
)
def test_sigkill_in_the_middle_of_a_save_loses_nothing(tmp_path, uninterrupted, call, end, left):
    assert killed_at(call, end, tmp_path) == left
    assert not (tmp_path / "run" / "summary.json").exists()
    output = resume(tmp_path)
    assert ("no checkpoint yet: starting at step 0" in output) == (left == [])
    assert result(tmp_path / "run") == uninterrupted


def test_a_run_killed_before_its_config_is_whole_can_be_started_again(tmp_path, uninterrupted):
    assert killed_at("replace", "run/config.yaml", tmp_path) == []
    assert run_train(*FLAGS, cwd=tmp_path).returncode == 0
    assert result(tmp_path / "run") == uninterrupted


def test_a_checkpoint_moved_aside_by_a_killed_save_comes_back(tmp_path, uninterrupted):
    assert killed_at("replace", "run/adapter", tmp_path) == ["step_000004", "step_000006"]
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step_000006").rename(folder / ".step_000006.old")
    assert "resuming run at step 6 of 6" in resume(tmp_path)
    assert result(tmp_path / "run") == uninterrupted


def test_what_can_be_read_of_a_damaged_file_of_metrics_stays(tmp_path):
    """Three lines in the middle are no JSON, no object, not UTF-8: 1, 5 and 6 stay, 9 is written again."""
    file = JsonLines(tmp_path / "metrics.jsonl")
    lines = [
        b'{"step": 1, "loss": 0.1}',
        b'{"step": 2, "lo',
        b"[3]",
        b'{"step": 4, "x": "\xff"}',
        b'{"step": 5}',
        b'{"step": 6}',
        b'{"step": 9}',
    ]
    file.path.write_bytes(b"\n".join(lines) + b"\n" + b'{"step": 10, "cut')
    whole = file.path.read_bytes()
    said = file.rewind(8)
    assert file.path.read_bytes() == b"\n".join([lines[0], *lines[4:6]]) + b"\n"
    aside = tmp_path / "damaged_metrics.jsonl" / "metrics.jsonl"
    assert said == f"3 lines of {file.path} can't be read; the file is kept as {aside}" and aside.read_bytes() == whole
    assert file.rewind(8) is None and file.rewind(1) is None
    assert file.path.read_bytes() == lines[0] + b"\n"


def test_line_separators_in_a_sample_survive_a_resume(tmp_path):
    lines = JsonLines(tmp_path / "samples.jsonl")
    for step in (1, 2, 3):
        lines.write(step, {"completion": "a\u2028b\u0085c\u2029d"})
    whole = lines.path.read_bytes()
    lines.rewind(2)
    assert lines.path.read_bytes() == whole[: len(whole) // 3 * 2]
    lines.path.write_bytes(whole[: len(whole) // 3 * 2 + 9])  # cut by a kill
    lines.rewind(3)
    assert lines.path.read_bytes() == whole[: len(whole) // 3 * 2]


@pytest.mark.parametrize(
    ("flags", "edit", "words"),
    [
        (["--steps", "1"], None, ["has taken 4 steps already"]),
        ([], ("alpha: 10.0", "alpha: 9.0"), ["made with alpha 10.0 (now 9.0)", "put config.yaml back"]),
        ([], ("lora_rank: 16", "lora_rank: 8"), ["made with lora_rank 16 (now 8)"]),
        ([], ("seed: 0", "sed: 0"), ["unknown setting 'sed'", "did you mean 'seed'"]),
    ],
)
def test_a_resume_that_would_be_another_run_is_refused_and_changes_nothing(tmp_path, four_steps, flags, edit, words):
    shutil.copytree(four_steps, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    if edit is not None:
        config.write_text(config.read_text().replace(*edit))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = run_train("--resume", "run", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(tmp_path, four_steps):
    shutil.copytree(four_steps, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = run_train("--resume", "run", cwd=tmp_path)
    assert done.returncode == 2 and "a summary but no checkpoint" in done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 1000


def test_a_failed_resume_gives_the_folder_back(tmp_path, four_steps):
    """In one process, as in a notebook: refused, mended, resumed."""
    run = tmp_path / "run"
    shutil.copytree(four_steps, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("alpha: 10.0", "alpha: 9.0"))
    with pytest.raises(UserError, match="made with alpha 10.0"):
        train(resume=run)
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="has taken 4 steps already"):
        train(resume=run, steps=3)
    assert train(resume=run).finished


@pytest.mark.parametrize("flags", [[], ["--teacher-offload"]])  # by which no number changes on a CPU
def test_more_steps_continue_the_same_run(tmp_path, four_steps, uninterrupted, flags):
    shutil.copytree(four_steps, tmp_path / "run")
    done = run_train("--resume", "run", "--steps", "6", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run") == uninterrupted


def test_resuming_a_finished_run_changes_nothing(tmp_path, four_steps):
    shutil.copytree(four_steps, tmp_path / "run")
    assert "finished at step 4 of 4" in resume(tmp_path)
    assert result(tmp_path / "run") == result(four_steps)


def test_two_runs_never_write_into_one_folder(tmp_path):
    held = """
import sys, time
from poweropd_lite.run.session import Prepared
from poweropd_lite.train import __main__ as command
def sample(*_):
    print("HERE", flush=True)
    time.sleep(1000)
Prepared.sample = sample
command.main(sys.argv[1:])
"""
    first = forked.start("-c", held, *FLAGS, cwd=tmp_path)
    try:
        assert "HERE\n" in first.stdout
        before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
        second = run_train("--resume", "run", cwd=tmp_path)
        assert second.returncode == 2
        assert "another process is training in run" in second.stderr
        again = run_train(*FLAGS, cwd=tmp_path)
        assert again.returncode == 2 and "run is not empty" in again.stderr
        assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before
    finally:
        first.kill()
        first.wait()


def test_a_disk_that_takes_no_more_ends_the_run_without_a_half_checkpoint(tmp_path):
    """No file may grow beyond 200 kB, as on a full disk: the weights of a checkpoint have 470 kB."""

    limited = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
runpy.run_module("poweropd_lite.train", run_name="__main__")
"""
    done = forked.run("-c", limited, *FLAGS, cwd=tmp_path)
    assert done.returncode == 2
    assert "can't write run/checkpoints/step_000002" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_unnamed_runs_get_folders_of_their_own(tmp_path):
    flags = ["--config", "bundled", *quick_flags(steps=1, eval_problems=1, eval_samples=1)]
    for _ in range(2):
        assert run_train(*flags, cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "problems-power10-seed0",
        "problems-power10-seed0-2",
    ]


def test_another_token_budget_and_what_auto_found_go_on(tmp_path, four_steps):
    """`--token-budget` at a resume replaces a halved one too; engine and loader are those the run began with."""
    shutil.copytree(four_steps, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "engine: loop" in config and "loader: peft" in config
    state = checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json"
    saved = json.loads(state.read_text())
    saved["state"]["token_budget"], saved["state"]["out_of_memory"] = 300, 2
    state.write_text(json.dumps(saved))
    write_manifest(state.parent, [file for file in state.parent.iterdir() if file.name != "manifest.json"])
    assert run_train("--resume", "run", "--steps", "5", cwd=tmp_path).returncode == 0
    assert run_train("--resume", "run", "--steps", "6", "--token-budget", "512", cwd=tmp_path).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    budgets = {line["step"]: line["optim/token_budget"] for line in lines if "loss" in line}
    assert budgets == {1: 1024, 2: 1024, 3: 1024, 4: 1024, 5: 300, 6: 512}
    with pytest.raises(UserError, match="steps change a run that is resumed"):
        train(load_config("bundled"), steps=3)


def test_the_clock_of_a_resumed_run_counts_both_sittings(tmp_path, four_steps):
    shutil.copytree(four_steps, tmp_path / "run")
    first = json.loads((four_steps / "summary.json").read_text())["seconds"]
    started = time.monotonic()
    assert run_train("--resume", "run", "--steps", "6", cwd=tmp_path).returncode == 0
    took = time.monotonic() - started
    both = json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]
    assert first["student"] < both["student"] < first["student"] + took


def test_the_state_of_the_8_bit_optimizer_is_saved_and_restored(tmp_path):
    """bitsandbytes wraps its state and shares its quantisation maps; both must survive safetensors."""
    from bitsandbytes.optim import AdamW8bit

    from poweropd_lite.models.student import load_student
    from poweropd_lite.run.checkpoint import RunState, load_checkpoint, save_checkpoint

    config, scaler = load_config("bundled"), torch.amp.GradScaler("cpu", enabled=False)

    def fresh():
        student = load_student(config, torch.device("cpu"), torch.float32)
        return student, AdamW8bit(list(student.trainable().values()), lr=1e-3, weight_decay=0.0, min_8bit_size=512)

    def step(student, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in student.trainable().values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    student, optimizer = fresh()
    step(student, optimizer, 0)
    path = save_checkpoint(tmp_path, RunState(step=1), student, optimizer, scaler, config)
    step(student, optimizer, 1)
    other, restored = fresh()
    load_checkpoint(path, other, restored, scaler, config)
    step(other, restored, 1)
    assert any(
        v.dtype == torch.uint8 for s in restored.state.values() for v in s.values() if isinstance(v, torch.Tensor)
    )
    for ours, theirs in zip(student.trainable().values(), other.trainable().values(), strict=True):
        assert torch.equal(ours, theirs)
