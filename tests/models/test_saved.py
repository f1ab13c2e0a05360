"""Training on from an adapter that TRL, PEFT or a run saved: nothing of it is lost, and what can't be followed is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from poweropd_lite.base.config import load_config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError, refuse
from poweropd_lite.checks.modules import check_modules
from poweropd_lite.engines.any_model import AnyDecoder
from poweropd_lite.engines.choose import choose_engine, choose_loader
from poweropd_lite.engines.loop import make_decoder
from poweropd_lite.models.loading import load_causal_lm, nf4, stay_unpacked
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.models.shape import served_run
from poweropd_lite.models.student import load_student
from poweropd_lite.plan.fit import _lower_rank

CPU = torch.device("cpu")
IDS = torch.arange(40, 70).view(2, 15)
KINDS = {
    "plain": {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1},
    "patterns": {"rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True},
    "DoRA": {"use_dora": True, "target_modules": r".*\.layers\.[01]\.(mlp|self_attn)\.(up_proj|v_proj)"},
    "ends trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}  # fmt: skip


def save_adapter(folder, **settings):
    """An adapter as PEFT saves it, of weights that are not zero; returns its folder's name."""
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(load_causal_lm("bundled", "student", torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p += 0.02 * torch.randn(p.shape)
    model.save_pretrained(str(folder))
    return str(folder)


def settled(folder, say=lambda text: None, **settings):
    return settle_adapter(load_config("bundled", adapter=str(folder), **settings), say)


def peft_logprobs(folder, bits=16):
    """PEFT's own, independent of anything here."""
    options = {"quantization_config": nf4(torch.float32), "device_map": {"": CPU}} if bits == 4 else {}
    base = load_causal_lm("bundled", "student", torch.float32, **options)
    stay_unpacked(base)
    with torch.no_grad():
        return PeftModel.from_pretrained(base, folder).eval()(input_ids=IDS).logits.log_softmax(-1)


@pytest.mark.parametrize("kind, bits", [*((kind, 16) for kind in KINDS), ("DoRA", 4), ("patterns", 4)])
def test_at_the_start_a_student_says_what_peft_says_of_its_adapter_and_all_of_it_learns(kind, bits, tmp_path):
    folder = save_adapter(tmp_path / "a", **KINDS[kind])
    student = load_student(settled(folder, student_bits=bits), CPU, torch.float32)
    hidden = student.hidden(IDS)
    logprobs = (hidden @ student.head.weight.T).log_softmax(-1)
    torch.testing.assert_close(logprobs, peft_logprobs(folder, bits), atol=1e-6, rtol=0)

    logprobs[..., 7].sum().backward()
    trained, saved = student.trainable(), load_file(f"{folder}/adapter_model.safetensors")
    assert sum(p.numel() for p in trained.values()) == sum(t.numel() for t in saved.values())
    assert all(p.grad is not None and p.dtype == torch.float32 for p in trained.values())


def test_modules_trained_whole_begin_in_half_precision_too(tmp_path):
    """They are float32 beside a bfloat16 base; within bfloat16's 8 bits the log-probs are PEFT's own in float32."""
    folder = save_adapter(tmp_path / "a", **KINDS["ends trained whole"])
    student = load_student(settled(folder), CPU, torch.bfloat16)
    with torch.no_grad():
        logprobs = (student.hidden(IDS).float() @ student.head.weight.T).log_softmax(-1)
    assert student.head.weight.dtype == torch.float32
    assert (logprobs - peft_logprobs(folder)).abs().mean() < 0.03


def test_rank_alpha_and_modules_are_the_adapters_and_what_was_given_instead_is_said(tmp_path):
    said = []
    config = settled(save_adapter(tmp_path / "a", target_modules=["v_proj", "q_proj"]), said.append, lora_rank=9)
    assert (config.lora_rank, config.lora_alpha, config.lora_targets) == (4, 6.0, "q_proj,v_proj")
    assert (
        said
        == [
            f"from the adapter in {tmp_path}/a: lora_rank 4 (not 9), lora_alpha 6.0 (not 32.0)"  # 32: of configs/bundled.yaml
        ]
    )
    assert settle_adapter(config, said.append) == config and len(said) == 1
    assert served_run(settled(save_adapter(tmp_path / "b", rank_pattern={"q_proj": 64}))).lora_rank == 64
    assert _lower_rank(load_config("bundled", lora_rank=64)) and not _lower_rank(changed(config, lora_rank=64))


def test_a_dora_adapter_is_refused_by_vllm_and_unsloth_and_sampled_by_transformers_own_forward(tmp_path):
    config, said = settled(save_adapter(tmp_path / "a", **KINDS["DoRA"])), []
    with pytest.raises(UserError, match="DoRA"):
        choose_engine(changed(config, engine="vllm"), CPU, torch.float32, "peft")
    with pytest.raises(UserError, match="use_dora.*type --loader peft"):
        choose_loader(changed(config, loader="unsloth"))
    decoder = make_decoder(load_student(config, CPU, torch.float32), said.append)
    assert isinstance(decoder, AnyDecoder) and "DoRA" in said[0]


def settings(**values):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def other_shapes(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: t[:, :-1].contiguous() for name, t in weights.items()}, folder / "adapter_model.safetensors")


def a_pickle(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": print}, folder / "adapter_model.bin")


BAD = {
    "another base": (settings(base_model_name_or_path="Qwen/Qwen3-4B"), "trained on Qwen/Qwen3-4B, .*is bundled"),
    "PiSSA": (settings(init_lora_weights="pissa_niter_4"), "pissa_niter_4, which changes the base"),
    "LoRA-GA": (settings(init_lora_weights="lora_ga"), "began with LoRA-GA, which changed its base, too"),
    "biases": (settings(bias="all"), "trains biases"),
    "rows of the embedding": (settings(trainable_token_indices=[3]), "trainable_token_indices, which training here"),
    "another kind": (settings(peft_type="IA3"), "type IA3"),
    "other shapes": (other_shapes, r"does not fit bundled: \d+ of \d+ tensors differ"),
    "a module that is not there": (settings(target_modules=["query"]), "does not fit bundled"),
    "cut": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x01\x00"), "can't be read"),
    "a pickle of code": (a_pickle, "can't be read"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "no settings": (lambda folder: (folder / "adapter_config.json").unlink(), "no folder of an adapter"),
}


@pytest.mark.parametrize("fault", BAD)
def test_an_adapter_that_can_not_be_trained_on_is_one_message_before_any_model_loads(fault, tmp_path, pair):
    folder = tmp_path / "a"
    save_adapter(folder, target_modules=["q_proj"])
    BAD[fault][0](folder)
    said = []
    with pytest.raises(UserError, match=BAD[fault][1]):
        refuse([check_modules(settled(folder, said.append), pair.sides[0])])
    assert [line for line in said if "lora_" not in line] == []


def test_full_finetuning_and_an_adapter_are_refused_together():
    with pytest.raises(UserError, match="--no-full-finetune"):
        load_config("bundled", adapter="a", full_finetune=True)
