"""What is chosen and refused where vLLM and Unsloth are not installed, as here; themselves they are tested in tests/engines."""

import json
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from conftest import DATA, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.engines import choose as backends
from poweropd_lite.engines.vllm import VllmEngine, _adapter_folder
from poweropd_lite.models.shape import cache_bytes, lora_rank_limit, read_shape, served_run
from poweropd_lite.models.student import load_student

CPU = torch.device("cpu")


def test_auto_says_why_it_takes_what_is_there():
    config = load_config("bundled")
    assert backends.choose_loader(config) == backends.Choice("peft", "Unsloth is not installed")
    assert backends.choose_engine(config, CPU, torch.float32, "peft") == backends.Choice(
        "loop", "vLLM is not installed"
    )


def test_what_is_asked_for_and_absent_is_refused_with_what_to_type():
    with pytest.raises(UserError, match="Unsloth is not installed; type --loader peft"):
        backends.choose_loader(load_config("bundled", loader="unsloth"))
    with pytest.raises(UserError, match="vLLM is not installed; type --engine loop"):
        backends.choose_engine(load_config("bundled", engine="vllm"), CPU, torch.float32, "peft")


def test_what_vllm_cannot_serve_goes_to_the_loop():
    reasons = {
        "full_finetune": (True, "full fine-tuning has none"),
        "modules_to_save": ("embed_tokens", "embed_tokens is trained whole"),
        "lora_rank": (600, "rank 512 at most, not 600"),
        "student_bits": (4, "16-bit weights what is trained on 4-bit ones"),
    }
    for name, (value, reason) in reasons.items():
        choice = backends.choose_engine(load_config("bundled", **{name: value}), CPU, torch.float32, "peft")
        assert choice.name == "loop" and reason in choice.why
    # Unsloth on CUDA shares its 4-bit weights with vLLM, if that can read them.
    shared = backends.vllm_unfit(16, ["q_proj"], [], bits=4, shared=True)
    assert "pip install vllm-bnb-plugin" in shared


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "vllm", "--full-finetune"], "engine vllm is sent an adapter, and nothing else can be trained"),
        (["--student-bits", "4", "--full-finetune"], "a 4-bit weight can't be; type --student-bits 16"),
        (["--importance-cap", "2", "--reward", "full_kl"], "full_kl has no reward to weigh"),
        (["--importance-cap", "0.5"], "importance_cap"),
        (["--student-bits", "8"], "student_bits"),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_anything_loads(flags, message, tmp_path):
    done = run_train("--config", "bundled", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_4_bit_student_trains(tmp_path):
    flags = [
        "--config",
        "bundled",
        "--student-bits",
        "4",
        "--data",
        DATA,
        "--steps",
        "3",
        "--eval-benchmarks",
        "none",
        "--eval-every",
        "0",
    ]
    done = run_train(*flags, "--engine", "loop", "--loader", "peft", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bundled-student (LoRA on a 4-bit base: 116,736 trained, float32)" in done.stdout
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["optim/skipped"] for line in steps] == [0.0] * 3
    assert all(line["optim/grad_norm"] > 1e-3 and line["parity/gap_max"] < 1e-4 for line in steps)


HOLDS = """
import os, tempfile, time
from poweropd_lite.engines.vllm import _adapter_folder
tempfile.tempdir, os.getpid = os.getcwd(), lambda: 999999999  # of another container: beyond the largest number here
folder = _adapter_folder(2**60)
print(folder.name, flush=True)
time.sleep(300)
"""


def test_adapters_for_vllm_go_where_there_is_room_and_those_of_killed_processes_go_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    unlocked = Path(tempfile.mkdtemp(prefix="poweropd-adapters-999999999-"))  # of a disk without locks, or just made
    other = forked.start("-c", HOLDS, cwd=tmp_path)
    held = Path(other.stdout.readline().strip())
    assert held.parent == tmp_path and held.name.startswith("poweropd-adapters-999999999-")
    (held / "step-1").mkdir()
    with _adapter_folder(2**60) as folder:  # more than any memory has
        assert Path(folder).parent == tmp_path and (held / "step-1").is_dir()
    other.kill()
    assert other.wait() == -9 and held.is_dir()
    with _adapter_folder(2**60) as folder, _adapter_folder(2**60) as second:
        assert set(tmp_path.iterdir()) == {Path(folder), Path(second), unlocked}
    assert list(tmp_path.iterdir()) == [unlocked]
    if Path("/dev/shm").exists():
        with _adapter_folder(0) as folder:
            assert Path(folder).parent == Path("/dev/shm")


def test_an_adapter_sent_to_vllm_that_is_gone_already_ends_no_run(tmp_path, monkeypatch):
    sent = []  # what vLLM is told: name, number, folder
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(LoRARequest=lambda *told: sent.append(told)))
    engine = object.__new__(VllmEngine)
    engine.model = load_student(load_config("bundled"), CPU, torch.float32).model
    engine.folder, engine.number, engine.asleep, engine.shared = tmp_path, 0, False, False
    engine.sent = engine.sent_before = None
    for number in range(1, 5):
        engine.sync()
        if number == 2:
            shutil.rmtree(tmp_path / f"step-{os.getpid()}-1")
    assert [Path(folder).name for *_, folder in sent] == [f"step-{os.getpid()}-{i}" for i in range(1, 5)]
    assert {folder.name for folder in tmp_path.iterdir()} == {f"step-{os.getpid()}-{i}" for i in (3, 4)}


def test_the_sizes_vllm_is_given():
    config = load_config("bundled")  # 128 + 112 tokens, 32 of them; 3 layers of 2 heads of 32, keys and values
    shape, served = read_shape("bundled", "student"), served_run(config)
    assert (served.lines, served.longest, served.lora_rank) == (32, 240, 16)
    assert cache_bytes(shape, served, torch.float32) == 32 * (240 + 128) * 3 * 2 * 2 * 32 * 4
    # a tied head of 512 x 128; a layer's attention, MLP and norms; the last norm
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 384 + 2 * 128 + 2 * 32
    assert shape.weight_bytes(32) == 4 * (512 * 128 + 3 * layer + 128)
    assert [lora_rank_limit(r) for r in (1, 2, 16, 33, 512)] == [1, 8, 16, 64, 512]
    with pytest.raises(UserError, match="rank 512 at most"):
        lora_rank_limit(513)


def test_doctor_says_what_is_here_and_what_a_run_would_use(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"  # of a driver that no torch here is built for
    smi.write_text("#!/bin/sh\necho 'Tesla T4, 470.82.01, 7.5'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = forked.run("-m", "poweropd_lite.doctor", "--env", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning driver: torch" in done.stdout and "Tesla T4 with driver 470.82.01" in " ".join(done.stdout.split())
    assert f"torch         {metadata.version('torch')}" in done.stdout
    assert "a run would use\n  dtype " in done.stdout and "\n  loader " in done.stdout and "\n  engine " in done.stdout
    assert "NF4 runs here (error of a random 256 x 256 product: 9." in done.stdout
    assert "vllm: pip install -r requirements.txt" in done.stdout
