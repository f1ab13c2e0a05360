"""The student's forms, LoRA, QLoRA and every weight, and the decoder that rollouts come from."""

import pytest
import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.engines.any_model import AnyDecoder
from poweropd_lite.engines.decode import FastDecoder
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.kernels.products import float_logits
from poweropd_lite.method.logprobs import Sampling, score_tokens
from poweropd_lite.method.rollout import Draws
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.student import Student, load_student

CPU = torch.device("cpu")
IDS = torch.arange(40, 60)[None]


def load(**settings):
    return load_student(load_config("bundled", **settings), CPU, torch.float32)


def shake(student, seed=0):
    """Gives the adapter weights that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def decoded(student, decoder=None):
    """The logits of IDS by the decoder: a prompt of eight ids, then one id after the other."""
    decoder = decoder or FastDecoder(student)
    decoder.sync()
    valid = torch.ones(1, 20, dtype=torch.bool)
    hidden = [decoder.prefill(IDS[:, :8], valid[:, :8], 20)]
    for column in range(8, 20):
        hidden.append(decoder.step(IDS[:, column], torch.tensor([column]), column, valid[:, : column + 1]))
    return float_logits(torch.stack(hidden, 1)[0], decoder.head)


def less_largest(logits):
    """As float_logits gives them."""
    return logits - logits.amax(-1, keepdim=True)


@pytest.mark.parametrize("whole", ["", "embed_tokens", "lm_head"])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj,up_proj"])
def test_the_decoder_follows_the_adapter_and_leaves_the_base_alone(whole, targets):
    student = load(modules_to_save=whole, lora_targets=targets)
    base = {k: v.clone() for k, v in student.model.named_parameters() if not v.requires_grad}
    for seed in range(2):
        shake(student, seed)
        with torch.no_grad():
            wanted = student.model(input_ids=IDS).logits[0, 7:]
        torch.testing.assert_close(decoded(student), less_largest(wanted), atol=3e-4, rtol=1e-4)
    assert all(torch.equal(v, base[k]) for k, v in student.model.named_parameters() if k in base)
    trained = [k for k in student.trainable() if "lora_" not in k]
    assert bool(trained) == bool(whole)


@pytest.mark.parametrize("make", [FastDecoder, AnyDecoder])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"modules_to_save": "embed_tokens"}, {"modules_to_save": "lm_head"}], ids=str)
def test_an_adapter_that_is_switched_off_is_off_in_the_decoder_too_and_on_again_afterwards(settings, dtype, make):
    student = load_student(load_config("bundled", **settings), CPU, dtype)
    shake(student)
    plain = Student(load_causal_lm("bundled", "student", dtype).eval(), CPU, dtype)
    decoder = make(student)
    on = decoded(student, decoder)
    with student.without_adapter():
        off = decoded(student, decoder)
    torch.testing.assert_close(off, decoded(plain, make(plain)), atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0)
    assert (on - off).abs().max() > 1
    assert torch.equal(decoded(student, decoder), on)


@pytest.mark.parametrize("settings", [{}, {"full_finetune": True}, {"student_bits": 4}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_is_the_student_in_every_form_and_dtype(settings, dtype):
    student = load_student(load_config("bundled", **settings), CPU, dtype)
    if not settings.get("full_finetune"):
        shake(student)
    with torch.no_grad(), student.compute():
        wanted = float_logits(student.hidden(IDS)[0, 7:], student.head).log_softmax(-1)
    ours = decoded(student).log_softmax(-1)
    probable = wanted > -6
    gap = (ours - wanted)[probable].abs()
    if dtype == torch.float32:
        assert gap.max() < 1e-3
    else:  # eight bits of mantissa
        assert gap.mean() < 0.03 and gap.max() < 0.3


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_the_decoder_knows_scaled_positions(student_model, rope):
    from transformers import AutoModelForCausalLM

    extra = {"linear": {}, "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, "yarn": {}}[rope]
    student_model.config.rope_parameters = {
        "rope_type": rope, "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64, **extra
    }  # fmt: skip
    other = AutoModelForCausalLM.from_config(student_model.config)
    other.load_state_dict(student_model.state_dict())
    student = Student(other.eval(), CPU, torch.float32)
    with torch.no_grad():
        wanted = other(input_ids=IDS).logits[0, 7:]
        plain = student_model(input_ids=IDS).logits[0, 7:]
    torch.testing.assert_close(decoded(student), less_largest(wanted), atol=3e-4, rtol=1e-4)
    assert (wanted - plain).abs().max() > 0.01


def test_a_4_bit_student_has_the_gradients_of_its_dequantised_weights():
    """QLoRA against a plain float32 model with the NF4 weights written out; a forward without gradient comes first."""
    import bitsandbytes.functional as bnb

    student = load(student_bits=4)
    plain = load_causal_lm("bundled", "student", torch.float32)
    with torch.no_grad():
        student.hidden(IDS)
        for name, module in student.model.get_base_model().named_modules():
            weight = getattr(module, "weight", None)
            if hasattr(weight, "quant_state"):
                written = bnb.dequantize_4bit(weight.data, weight.quant_state)
                plain.get_submodule(name.replace(".base_layer", "")).weight.copy_(written)
    twin = load()
    for name, p in plain.named_parameters():
        target = dict(twin.model.get_base_model().named_parameters())
        target[name if name in target else name.replace(".weight", ".base_layer.weight")].data.copy_(p)
    gradients = []
    for one in (student, twin):
        shake(one)
        one.hidden(IDS).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.trainable().values()]))
    assert (gradients[0] - gradients[1]).norm() < 2e-3 * gradients[1].norm()


def test_a_tied_head_trained_by_modules_to_save_stays_tied_and_gets_both_gradients():
    student = load(modules_to_save="embed_tokens")
    weight = student.head.weight
    assert weight.requires_grad
    ids = IDS[0, 1:]
    hidden = student.hidden(IDS)[0, :-1]
    score_tokens(
        hidden, student.head, ids, Sampling(), "full", lambda log_q, rows: torch.ones_like(log_q)
    ).score.sum().backward()
    ours = weight.grad.clone()
    student.model.zero_grad()
    logits = student.model(input_ids=IDS).logits[0, :-1]
    logits.log_softmax(-1).gather(-1, ids[:, None]).sum().backward()
    torch.testing.assert_close(ours, weight.grad, atol=1e-4, rtol=1e-4)


def test_lora_trains_the_adapter_alone_in_float32_whatever_the_base():
    student = load_student(load_config("bundled", lora_rank=4), CPU, torch.bfloat16)
    assert {p.dtype for p in student.trainable().values()} == {torch.float32}
    assert all("lora_" in name for name in student.trainable())
    # 3 layers; rank 4 times the sum of in and out sizes of q, k, v, o, gate, up, down
    sizes = (128 + 128) + 2 * (128 + 64) + (128 + 128) + 2 * (128 + 384) + (384 + 128)
    assert sum(p.numel() for p in student.trainable().values()) == 3 * 4 * sizes


def test_target_modules_can_be_named():
    student = load(lora_targets="q_proj,v_proj")
    assert {name.split(".")[-4] for name in student.trainable()} == {"q_proj", "v_proj"}


def test_full_finetuning_trains_every_weight_in_float32():
    student = load_student(load_config("bundled", full_finetune=True), CPU, torch.bfloat16)
    assert {p.dtype for p in student.model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in student.trainable().values()) == student.model.num_parameters()


def test_the_adapter_starts_at_zero_from_the_seed():
    one, same, other = load(seed=1), load(seed=1), load(seed=2)
    a, b, c = (next(iter(s.trainable().values())) for s in (one, same, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    plain = load_causal_lm("bundled", "student", torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(one.model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        student = load(gradient_checkpointing=checkpointing)
        shake(student)
        student.hidden(IDS).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.trainable().values()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("settings", [{}, {"full_finetune": True}], ids=["LoRA on bfloat16", "every weight"])
def test_decoding_works_with_gradient_checkpointing_on(settings, prompts, pair):
    """Qwen3's configs have it on; in training mode transformers would leave out the KV cache."""
    completions = []
    for checkpointing in (True, False):
        config = load_config("bundled", gradient_checkpointing=checkpointing, **settings)
        student = load_student(config, CPU, torch.bfloat16)
        student.hidden(IDS).sum().backward()  # training first, then decoding, as in the loop
        engine = LoopEngine(student, pair.stop_ids, say=print)
        engine.sync()
        draws = Draws(0, 0, 0, (0, 1, 2, 3))
        done = engine.sample([p.ids for p in prompts[:4]], draws, Sampling(), 20)
        completions.append([r.completion_ids for r in done])
    assert completions[0] == completions[1]
    assert max(map(len, completions[0])) > 5
