"""A run that starts from an adapter, as after an SFT: resumed bit for bit, handed on, exported with where it came from."""

import json
import shutil

import pytest
import torch
from conftest import DATA
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.ask import before_and_after
from poweropd_lite.export.make import export
from poweropd_lite.export.settings import ExportConfig
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.train import train

QUICK = {"steps": 2, "save_every": 1, "batch_size": 4, "max_new_tokens": 24, "data": DATA, "eval_benchmarks": None}


def test_a_run_from_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], alpha_pattern={"q_proj": 3})
    sft = get_peft_model(load_causal_lm("bundled", "student", torch.float32), lora)
    for name, p in sft.named_parameters():
        p.data += 0.2 * torch.randn(p.shape) if "lora_" in name else 0
    sft.save_pretrained("sft")

    assert train(load_config("bundled", **QUICK, adapter="sft", output="run")).finished
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["parity/adapter_effect"] > 0.01  # at the first step already; its rollouts were compared with it
    assert first["parity/gap_max"] < 1e-5

    shutil.copytree("run", "again")
    shutil.rmtree("again/checkpoints/step_000002")
    assert train(resume="again").finished
    assert (
        load_file("run/adapter/adapter_model.safetensors").keys() == load_file("sft/adapter_model.safetensors").keys()
    )
    weights = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]

    exported = export(ExportConfig(model="run", to="merged-16bit", output="out"), say=lambda text: None)
    assert (
        exported.report["training"]["trained"] == "LoRA rank 4, lora_alpha 6, with alpha_pattern, from the adapter sft"
    )
    assert exported.report["proof"]["verdict"] == "proven"
    question = "What is 3 + 4?"
    assert (
        before_and_after("run", question, max_new_tokens=24)[0]
        == before_and_after("sft", question, max_new_tokens=24)[1]
    )

    saved = load_file("sft/adapter_model.safetensors")
    save_file({name: 1.5 * t for name, t in saved.items()}, "sft/adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter's files: adapter_model\.safetensors"):
        train(resume="run", steps=3)
    with pytest.raises(UserError, match="type --adapter run/adapter"):
        settle_adapter(load_config("bundled", adapter="run"), print)
    assert settle_adapter(load_config("bundled", adapter="run/adapter"), print).lora_targets == "down_proj,q_proj"
