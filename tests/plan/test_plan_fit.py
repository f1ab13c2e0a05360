"""What the plan says of cards: which configs fit, the smallest change that does, what it writes, what it refuses."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from test_plan import PAIRS, memory_of, remembered, run_plan  # noqa: F401

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.plan import plan
from poweropd_lite.plan.fit import config_text, fit
from poweropd_lite.plan.memory import GIB
from poweropd_lite.plan.settings import PlanConfig


@pytest.mark.parametrize("name", PAIRS)
def test_all_four_pairs_fit_24_gb_as_lora(name):
    report, fitting = plan(load_config(name), PlanConfig(gpu="24"), say=print)
    assert report["fits"] and report["changes"] == {} and fitting == load_config(name)
    assert report["needed_bytes"] < 22.0 * GIB  # of an L4 or A10, the smallest cards sold as 24 GB


def test_the_change_that_fits_is_needed_and_enough(tmp_path):
    done = run_plan("--config", "qwen3-0.6b-4b", "--gpu", "8", "--write", "small.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not on 8 GB" in done.stdout and "change  --decode-batch-size" in done.stdout
    text = (tmp_path / "small.yaml").read_text()
    assert text.startswith("# Qwen/Qwen3-0.6B-Base <- Qwen/Qwen3-4B, LoRA: fits 8 GB")
    small = load_config(tmp_path / "small.yaml")
    limit = 0.91 * 8 * GIB

    def needed(config):
        return memory_of(config, torch.bfloat16, cuda=True).needed

    assert needed(small) <= limit
    before = load_config("qwen3-0.6b-4b")
    for name in yaml.safe_load(text):
        if getattr(small, name) != getattr(before, name):  # each change alone put back no longer fits
            assert needed(small.model_copy(update={name: getattr(before, name)})) > limit, name
    again = run_plan("--config", "qwen3-0.6b-4b", "--gpu", "8", "--write", "small.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "never writes over a file" in again.stderr


@pytest.mark.parametrize(
    ("gpu", "settings", "changes"),
    [
        ("12", {"decode_batch_size": 64}, {"decode_batch_size": 16}),
        ("8", {"batch_size": 16, "decode_batch_size": 8, "token_budget": 262_144}, {"token_budget": 16_384}),
        ("12", {"eval_max_new_tokens": 1030}, {"decode_batch_size": 16}),
        ("8", {"max_new_tokens": 7168, "eval_max_new_tokens": 1024, "decode_batch_size": 4}, {"decode_batch_size": 2}),
    ],
)
def test_what_changes_no_result_is_enough(gpu, settings, changes):
    """Settings above what is really used, two phases alike, few completions at once: none needs a last resort."""
    config = load_config("qwen3-0.6b-4b", **settings)
    report, fitting = plan(config, PlanConfig(gpu=gpu), say=print)
    harmless = {"decode_batch_size", "eval_batch_size", "token_budget"}
    assert set(report["changes"]) <= harmless and {k: getattr(fitting, k) for k in changes} == changes, report[
        "changes"
    ]


def test_vllm_that_does_not_fit_gives_way_to_the_loop():
    """2 GiB of vLLM's own beside a pair of a few MiB: nothing but another engine makes it fit 1.5 GiB."""
    config = load_config("bundled", engine="vllm")

    def memory(of):
        return memory_of(of, torch.bfloat16, cuda=True, engine="vllm" if of.engine == "vllm" else "loop")

    assert memory(config).needed > 2 * GIB
    found = fit(config, round(1.5 * GIB), memory, print)
    assert found == config.model_copy(update={"engine": "loop"})


def test_what_train_refuses_is_not_planned():
    for gpu, settings, words in [
        ("cpu", {"optimizer": "adamw8bit"}, "adamw8bit needs a CUDA card, not this machine's CPU; type --optimizer"),
        ("cpu", {"teacher_bits": 8}, "needs a CUDA card, not this machine's CPU; type --teacher-bits 4, 16 or 32"),
        ("cpu", {"dtype": "float16"}, "float16 needs a CUDA card, not this machine's CPU; type --dtype float32"),
        ("t4", {"dtype": "bfloat16"}, "t4 has no bfloat16; type --dtype float16"),
        ("t4", {"full_finetune": True}, "t4 has no bfloat16, and full_finetune in float16 loses small updates; type"),
    ]:
        with pytest.raises(UserError, match=words):
            plan(load_config("qwen3-0.6b-4b", **settings), PlanConfig(gpu=gpu), say=print)
    config = load_config("qwen3-0.6b-4b", full_finetune=True)  # and a search does not end in what is refused
    report, fitting = plan(config, PlanConfig(gpu="cpu"), say=print)
    assert fitting is None or fitting.optimizer == "adamw"


def test_no_card_is_named_and_none_is_here(tmp_path):
    """What fits is then not known: the report says which sizes hold it, and a written config what it needs."""
    done = run_plan("--config", "qwen3-0.6b-4b", "--json", "--write", "any.yaml", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["fits"] is None and report["usable_bytes"] is None
    needed = f"needs {report['needed_bytes'] / GIB:.1f} GiB by plan's arithmetic"
    assert needed in (tmp_path / "any.yaml").read_text().splitlines()[0]
    (tmp_path / "file").write_text("")
    for place, words in (("file/x.yaml", "can't write into"), ("any.yaml", "never writes over a file")):
        done = run_plan("--config", "qwen3-0.6b-4b", "--write", place, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_nothing_makes_an_8b_teacher_fit_4_gb():
    config = load_config("qwen3-1.7b-8b", max_new_tokens=256, max_prompt_tokens=256)
    assert fit(config, 4 * GIB, lambda c: memory_of(c, torch.bfloat16, cuda=True), print) is None


def test_a_written_config_is_the_differences():
    config = load_config("bundled", alpha=3)
    values = yaml.safe_load(config_text(config, "x"))
    assert values["alpha"] == 3 and values["student"] == "bundled" and "lora_targets" not in values
    assert load_config(**values) == config


def test_exit_codes_and_messages():
    small = ["--config", "qwen3-0.6b-4b"]
    assert run_plan(*small, "--gpu", "8").returncode == 1
    for flags, message in [
        (["--gpu", "rtx9999"], "neither a size in GB, such as 24, nor one of rtx3060"),
        (["--gpu", "0"], "neither a size"),
        (["--gpu", "7777"], "neither a size"),
        (["--gpuu", "24"], "did you mean '--gpu'?"),
        (["--compute-share", "2"], "compute_share: found '2'"),
        (["--student", "nowhere/at-all", "--teacher", "bundled"], "no model config for the student"),
    ]:
        done = run_plan(*flags)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, flags


def test_help_is_quick_and_imports_no_torch():
    code = """
import contextlib, sys
from poweropd_lite.plan.__main__ import main
with contextlib.suppress(SystemExit):
    main(["--help"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--gpu" in done.stdout and "--token-budget" in done.stdout, done.stderr
