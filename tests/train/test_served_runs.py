"""Runs whose teacher is served: equal to those with it loaded, interrupted by its absence and resumed, and what stands around them."""

import contextlib
import io
import json
import os
import signal

import pytest
import torch
from conftest import DATA, QUICK, run_here
from safetensors.torch import load_file
from teacher_server import code, serving

from poweropd_lite.base.config import load_config
from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.cli import main as poweropd
from poweropd_lite.doctor.__main__ import main as doctor
from poweropd_lite.evaluate.__main__ import main as evaluate
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.plan.make import plan
from poweropd_lite.run.folder import open_run
from poweropd_lite.train import train
from poweropd_lite.train.__main__ import main

KEY = "sk-in-no-file"
SETTINGS = {**QUICK, "steps": 3, "batch_size": 4, "max_new_tokens": 40, "eval_max_new_tokens": 40, "save_every": 50}
SETTINGS |= {"eval_problems": 4, "token_budget": 160, "eval_every": 0, "max_prompt_tokens": 100}


@pytest.fixture(scope="module")
def server(pair):
    model = load_causal_lm("bundled", "teacher", torch.float32).eval()
    with serving(model, pair.teacher_tokenizer, name="theirs") as one:
        one.key = KEY
        yield one


@pytest.fixture(autouse=True)
def clean(server, monkeypatch):
    monkeypatch.setenv("POWEROPD_TEACHER_KEY", KEY)
    server.faults = []


def served(server, **changes):
    return {"teacher": server.address, "teacher_name": "theirs", "teacher_tokenizer": "bundled"} | changes


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """Three steps with the served teacher: (what was said, the folder)."""
    folder, out = tmp_path_factory.mktemp("served") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        patched.setenv("POWEROPD_TEACHER_KEY", KEY)
        assert train(load_config("bundled", **SETTINGS, **served(server), output=str(folder))).finished
    return out.getvalue(), folder


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in found]


def result(run):
    last = max((run / "checkpoints").glob("step_*"))
    files = [run / "adapter" / "adapter_model.safetensors", last / "optimizer.safetensors", run / "samples.jsonl"]
    return lines(run), *(file.read_bytes() for file in files)


def test_a_run_equals_that_with_the_teacher_loaded(uninterrupted, tmp_path):
    said, run = uninterrupted
    assert "<- theirs (served), 256 prompts" in said
    assert train(load_config("bundled", **SETTINGS, teacher_bits=32, output=str(tmp_path / "run"))).finished
    ours, theirs = lines(run), lines(tmp_path / "run")
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in ("logprob/teacher", "kl/train", "reward/mean", "loss", "eval/kl"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5), key
    mine, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, tmp_path / "run"))
    learnt = [key for key in mine if "lora_B" in key]  # from 0 on
    apart = sum((mine[key] - other[key]).square().sum() for key in learnt)
    assert (
        apart.sqrt() < 1e-3 * sum(mine[key].square().sum() for key in learnt).sqrt()
    )  # Adam turns rounding about 0 into steps


def test_the_key_stands_in_no_file_and_is_not_said(uninterrupted):
    said, run = uninterrupted
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 15 and KEY not in said
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


def test_a_teacher_that_goes_away_ends_the_run_saved_and_resumed_it_equals_an_uninterrupted_one(
    server, uninterrupted, tmp_path, student_model, monkeypatch
):
    flags = [word for k, v in {**SETTINGS, **served(server)}.items() for word in ("--" + k.replace("_", "-"), str(v))]
    # Two requests at the start; the known texts and two micro-batches for the KL before, and for each step: the second goes.
    server.faults = [*[None] * (2 + 3 + 3 + 1), *[code(503)] * 500]
    monkeypatch.setattr("poweropd_lite.models.served.PAUSES", (0.001, 1.0))
    gone = run_here(main, "--config", "bundled", *flags, "--teacher-patience", "0.05", "--output", "run", cwd=tmp_path)
    assert gone.returncode == 2 and "Traceback" not in gone.stderr, gone.stderr
    assert f"the teacher at {server.address} is away (HTTP 503" in gone.stdout
    assert "was waited for as long as teacher_patience says: 0.05 s" in gone.stderr and "--resume" in gone.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]

    server.faults, whole = [], server.model
    server.model = student_model
    other = run_here(main, "--resume", "run", cwd=tmp_path)
    assert other.returncode == 2
    assert "teacher's log-probs of known texts, which have moved by" in other.stderr

    def interrupted(handler, answer):
        os.kill(os.getpid(), signal.SIGINT)
        return code(503)(handler, answer)

    server.model, server.faults = whole, [*[None] * 3, *[interrupted], *[code(503)] * 500]
    stopped = run_here(main, "--resume", "run", "--teacher-patience", "600", cwd=tmp_path)
    assert stopped.returncode == 130 and "stopped at step 1 of 3" in stopped.stdout, stopped.stderr

    server.faults = []
    moved = server.address.replace("127.0.0.1", "localhost")
    again = run_here(main, "--resume", "run", "--teacher-patience", "600", "--teacher", moved, cwd=tmp_path)
    assert again.returncode == 0 and "resuming run at step 1 of 3" in again.stdout, again.stderr
    assert result(tmp_path / "run") == result(uninterrupted[1])
    assert KEY not in gone.stdout + gone.stderr + again.stdout + again.stderr


def test_no_other_teacher_is_taken_by_a_resume(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config("bundled")))
    with pytest.raises(UserError, match="learns from bundled, and --resume takes another address of a served teacher"):
        open_run(tmp_path, teacher="Qwen/Qwen3-4B")


def test_evaluate_estimates_the_kl_through_the_server(server, uninterrupted, tmp_path):
    _, run = uninterrupted
    here = ["--benchmarks", DATA, "--problems", "4", "--n", "1", "--max-new-tokens", "20", "--teacher"]
    found = {}
    for name, teacher in {"run": ["run"], "loaded": ["bundled", "--teacher-bits", "32"]}.items():
        done = run_here(evaluate, "--model", str(run), *here, *teacher, "--output", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "kl.json").read_text())
    assert found["run"]["kl"] == pytest.approx(found["loaded"]["kl"], abs=1e-5)
    assert (found["run"]["teacher"], found["run"]["bits"], found["loaded"]["bits"]) == ("theirs", None, 32)
    named = run_here(evaluate, "--model", str(run), *here[:-1], "--teacher-name", "theirs", cwd=tmp_path)
    assert named.returncode == 2 and "are of a --teacher by its address" in named.stderr


def test_plan_counts_no_teacher_on_this_machine_and_doctor_asks_the_server(server, monkeypatch):
    config = load_config("bundled", **SETTINGS, **served(server))
    loaded, ours = (plan(c, say=str)[0] for c in (load_config("bundled", **SETTINGS), config))
    assert "teacher" in loaded["phases"]["rollout"] and not any("teacher" in held for held in ours["phases"].values())
    assert ours["phases"]["score"].keys() == {"student", "adapter", "optimizer"}

    flags = [word for k, v in served(server).items() for word in ("--" + k.replace("_", "-"), v)]
    sound = run_here(doctor, "--config", "bundled", "--data", DATA, *flags)
    assert "theirs answers at http://127.0.0.1" in sound.stdout
    monkeypatch.setattr(server, "name", "another")
    refused = run_here(doctor, "--config", "bundled", "--data", DATA, *flags)
    assert refused.returncode == 1 and "serves another, and not theirs" in refused.stdout


@pytest.mark.parametrize("command", ["audit", "advise", "chat"])
def test_what_needs_the_teacher_itself_is_refused(command, server, uninterrupted):
    flags = [word for k, v in served(server).items() for word in ("--" + k.replace("_", "-"), v)]
    flags = [str(uninterrupted[1]), "--teacher"] if command == "chat" else ["--config", "bundled", *flags]
    done = run_here(lambda argv: poweropd([command, *argv]), *flags)
    assert done.returncode == 2 and "log-probs of" in done.stderr and "error: " in done.stderr
