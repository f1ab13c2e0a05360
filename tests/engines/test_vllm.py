"""The real vLLM in the training loop: it learns, agrees with the trainer, and the guard catches each planted fault."""

import json
from pathlib import Path

import pytest
import torch
from conftest import PAIR, UNSCORED, run_python, run_train, steps, summary
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TINY = Path(__file__).parents[2] / "poweropd_lite" / "tiny"
GPU = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"


def test_the_pair_learns_through_vllm(vllm_run):
    output, run = vllm_run
    facts = summary(run)
    assert "rollouts by vllm (as set)" in output
    assert (facts["engine"], facts["loader"], facts["finished"], facts["steps"]) == ("vllm", "peft", True, 20)
    # 34% before; after 20 steps the built-in loop has about 75%: noise of 128 answers is 4 points
    assert facts["accuracy_before"] < 0.5 < facts["accuracy_after"]
    assert facts["accuracy_after"] > facts["accuracy_before"] + 0.2


def test_after_its_summary_the_run_ends_and_nothing_that_it_started_is_left(vllm_run):
    output, run = vllm_run
    assert "use it:" in output.splitlines()[-1]
    assert (run.parent / "left").read_text() == ""


@pytest.mark.parametrize("part, rows", [("vllm-pieces", 6), ("evaluate-vllm", 3)])
def test_the_benchmark_of_a_card_runs_through_vllm(part, rows, tmp_path):
    done = run_python(str(GPU), "--here", "--tiny", "--part", part, "--output", ".", cwd=tmp_path, imported="vllm")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
    assert len(found) == rows
    assert all(row["ms a token"] > 0 if part == "vllm-pieces" else row["tokens/s"] > 0 for row in found)


def test_vllm_and_the_trainer_agree_within_1e_4_at_every_step(vllm_run):
    _, run = vllm_run
    lines = steps(run)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert all(line["parity/gap_max"] < 1e-4 for line in lines), [line["parity/gap_max"] for line in lines]
    assert all(0 < line["parity/gap"] < 1e-5 for line in lines)


def test_the_guard_sees_the_adapter_and_the_temperature(vllm_run):
    """Full checks at steps 1, 6, 11 (also the first of the second sitting) and 16."""
    _, run = vllm_run
    lines = {line["step"]: line for line in steps(run)}
    checked = [step for step, line in lines.items() if "parity/adapter_effect" in line]
    assert checked == [6, 11, 16]  # at step 1 the adapter is zero
    effects = [lines[step]["parity/adapter_effect"] for step in checked]
    assert effects[0] > 0.01 and effects == sorted(effects)
    assert all(0.8 < lines[step]["parity/temperature"] < 1.25 for step in (1, 6, 11))


FAULTS = {
    "adapter not sent": (
        """
def sync(self):
    real(self)
    self.request = None
""",
        "the engine ignores the adapter",
        2,
    ),
    # vLLM's own trap: the number of the step before is reused, so the weights of the step before are served.
    "adapter of the step before": (
        """
from vllm.lora.request import LoRARequest
def sync(self):
    real(self)
    if self.number == 4:
        self.request = LoRARequest(self.sent_before.name, 3, str(self.sent))
""",
        "They are those of the adapter of the step before",
        4,
    ),
    "temperature 0.7": (
        """
real_params = vllm.VllmEngine._params
def cooler(self, *args):
    params = real_params(self, *args)
    params.temperature = 0.7
    return params
vllm.VllmEngine._params = cooler
def sync(self):
    real(self)
""",
        "tokens look drawn at temperature 0.7",
        1,
    ),
    "base weights swapped": (
        """
import dataclasses, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from poweropd_lite.models.loading import model_path
path = model_path("bundled", "student")
model = AutoModelForCausalLM.from_pretrained(path)
with torch.no_grad():
    model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
model.save_pretrained("other")
AutoTokenizer.from_pretrained(path).save_pretrained("other")
real_start = vllm._start
vllm._start = lambda served, *rest: real_start(dataclasses.replace(served, model="other"), *rest)
def sync(self):
    real(self)
""",
        "the engine has other base weights than the trainer",
        1,
    ),
}

PLANTED = """
import sys
from poweropd_lite.engines import vllm
from poweropd_lite.train import __main__ as command, loop as train
from poweropd_lite.cli import run_command
real = vllm.VllmEngine.sync
{fault}
vllm.VllmEngine.sync = sync
run_command(lambda: command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", FAULTS)
def test_the_guard_catches(name, tmp_path):
    fault, message, step = FAULTS[name]
    # No evaluation, so that the first sync is that of step 1; 64 rollouts, so that one step tells the temperature.
    flags = [
        *UNSCORED,
        "--batch-size",
        "64",
        "--steps",
        "6",
    ]
    flags += ["--engine", "vllm", "--loader", "peft", "--output", "run"]
    done = run_python("-c", PLANTED.format(fault=fault), *flags, cwd=tmp_path, imported="vllm")
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert message in done.stderr and f"at step {step} " in done.stderr, done.stderr[-2000:]
    assert len(steps(tmp_path / "run")) == step - 1  # the step of the fault is not taken
    assert not (tmp_path / "run" / "adapter").exists()
    if (
        name == "adapter not sent"
    ):  # as the message says: the weights before the step are saved, and the loop goes on from them
        flags = ["--resume", "run", "--engine", "loop", "--steps", "3"]
        done = run_python("-m", "poweropd_lite.train", *flags, cwd=tmp_path, imported="peft")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "resuming run at step 1 of 3" in done.stdout
        assert summary(tmp_path / "run")["engine"] == "loop"


DIES = """
def sync(self):
    real(self)
    if self.number == 3:
        self.llm.llm_engine.engine_core.engine_core.model_executor = None
"""


def test_a_vllm_that_dies_in_the_middle_of_a_run_is_one_message_and_the_loop_goes_on(tmp_path):
    """Its executor is gone before the third step; whatever vLLM then raises, two steps are saved."""
    flags = [*UNSCORED, "--steps", "4", "--save-every", "1", "--engine", "vllm", "--loader", "peft", "--output", "run"]
    done = run_python("-c", PLANTED.format(fault=DIES), *flags, cwd=tmp_path, imported="vllm")
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "error: vLLM failed in the middle of its work: " in done.stderr and "Traceback" not in done.stderr
    assert len(steps(tmp_path / "run")) == 2
    done = run_python("-m", "poweropd_lite.train", "--resume", "run", "--engine", "loop", cwd=tmp_path, imported="peft")
    assert done.returncode == 0 and "resuming run at step 2 of 4" in done.stdout, done.stderr[-2000:]


def test_what_vllm_cant_do_is_refused_or_left_to_the_loop(tmp_path):
    flags = [*PAIR, "--loader", "peft", "--steps", "1", "--eval-benchmarks", "none"]
    refused = run_python(
        "-m", "poweropd_lite.train", *flags, "--engine", "vllm", "--student-bits", "4", cwd=tmp_path, imported="vllm"
    )
    assert refused.returncode == 2
    assert (
        "engine vllm can't run: vLLM would sample from 16-bit weights what is trained on 4-bit ones" in refused.stderr
    )
    left = run_python(
        "-m", "poweropd_lite.train", *flags, "--full-finetune", "--output", "full", cwd=tmp_path, imported="vllm"
    )
    assert left.returncode == 0, left.stderr[-2000:]
    assert "rollouts by loop (vLLM is sent an adapter, and full fine-tuning has none)" in left.stdout
    assert summary(tmp_path / "full")["engine"] == "loop"


def test_a_vllm_that_does_not_fit_says_what_to_lower(tmp_path):
    """A hundred thousand completions of 240 tokens: 53 GiB of keys and values, which this machine has not."""
    flags = [
        *UNSCORED,
        "--engine",
        "vllm",
        "--loader",
        "peft",
    ]
    flags += ["--batch-size", "100000", "--output", "run"]
    done = run_python("-m", "poweropd_lite.train", *flags, cwd=tmp_path, imported="vllm")
    assert done.returncode == 2, done.stdout[-2000:]
    # 3 layers, 2 key-value heads of 32, keys and values, 4 bytes: 1,536 bytes a token; 240 tokens and a block of 128
    assert (
        f"{100_000 * (240 + 128) * 1536 / 2**30:.1f} GiB for keys and values (100000 completions of 240 tokens)"
        in done.stderr
    )
    assert "lower --batch-size" in done.stderr and "--engine loop" in done.stderr
    assert not (tmp_path / "run").exists()


def test_vllm_follows_the_patterns_of_an_adapter_that_is_trained_on(tmp_path):
    """Per-layer ranks and scales, and rsLoRA's; every one of them is needed for the trainer's log-probs."""
    torch.manual_seed(3)
    scales = {"rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True}
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], **scales)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY / "student", dtype=torch.float32), lora)
    for name, p in model.named_parameters():
        p.data += 0.2 * torch.randn(p.shape) if "lora_" in name else 0
    model.save_pretrained(tmp_path / "sft")
    small = ["--adapter", "sft", "--steps", "1", "--batch-size", "4", "--max-new-tokens", "24", "--loader", "peft"]
    done = run_train(*UNSCORED, *small, "--engine", "vllm", "--output", "run", cwd=tmp_path, imported="vllm")
    assert done.returncode == 0, done.stderr
    (line,) = steps(tmp_path / "run")
    assert line["parity/gap_max"] < 1e-4 < 1e-2 < line["parity/adapter_effect"]
