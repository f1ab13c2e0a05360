"""The student's two forms, LoRA and every weight, and the merged copy that rollouts are decoded with."""

import copy
from types import SimpleNamespace

import pytest
import torch

from poweropd_lite.config import load_config
from poweropd_lite.errors import UserError
from poweropd_lite.logprobs import Sampling, score_tokens
from poweropd_lite.models import check_head, load_causal_lm
from poweropd_lite.student import load_student

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


@pytest.mark.parametrize("whole", ["", "embed_tokens", "lm_head"])
def test_the_merged_copy_decodes_as_the_student_and_leaves_the_base_alone(whole):
    student = load(modules_to_save=whole)
    base = {k: v.clone() for k, v in student.model.named_parameters() if not v.requires_grad}
    for seed in range(2):  # the copy follows the weights from step to step
        shake(student, seed)
        body, head = student.decoder()
        with torch.no_grad():
            merged = body(input_ids=IDS).last_hidden_state @ head.T
            wanted = student.model(input_ids=IDS).logits
        torch.testing.assert_close(merged, wanted, atol=2e-4, rtol=1e-4)
    assert all(torch.equal(v, base[k]) for k, v in student.model.named_parameters() if k in base)
    trained = [k for k in student.trainable() if "lora_" not in k]
    assert bool(trained) == bool(whole)


def test_a_tied_head_trained_by_modules_to_save_stays_tied_and_gets_both_gradients():
    student = load(modules_to_save="embed_tokens")
    weight = student.head
    assert weight.requires_grad
    ids = IDS[0, 1:]
    hidden = student.hidden(IDS)[0, :-1]
    score_tokens(hidden, weight, ids, Sampling(), "full").score.sum().backward()
    ours = weight.grad.clone()
    student.model.zero_grad()
    logits = student.model(input_ids=IDS).logits[0, :-1]
    logits.log_softmax(-1).gather(-1, ids[:, None]).sum().backward()
    torch.testing.assert_close(ours, weight.grad, atol=1e-4, rtol=1e-4)


def test_lora_trains_the_adapter_alone_in_float32_whatever_the_base():
    student = load_student(load_config("bundled", lora_rank=4), CPU, torch.bfloat16)
    assert student.merged is None  # merging into a bfloat16 copy would round the update away
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
    plain = load_causal_lm("bundled", "student", load_config("bundled"), torch.float32)
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
    from conftest import make_rollouts

    completions = []
    for checkpointing in (True, False):
        config = load_config("bundled", gradient_checkpointing=checkpointing, **settings)
        student = load_student(config, CPU, torch.bfloat16)
        student.hidden(IDS).sum().backward()  # training first, then decoding, as in the loop
        body, head = student.decoder()
        with student.compute():
            shell = SimpleNamespace(model=body, lm_head=SimpleNamespace(weight=head))
            completions.append([r.completion_ids for r in make_rollouts(shell, prompts[:4], pair, longest=20)])
    assert completions[0] == completions[1]
    assert max(map(len, completions[0])) > 5


def test_a_model_that_scales_or_caps_its_logits_is_refused(student_model):
    check_head(student_model, "bundled")
    scaled = copy.deepcopy(student_model)
    forward = scaled.lm_head.forward
    scaled.lm_head.forward = lambda x: 30 * torch.tanh(2 * forward(x) / 30)
    with pytest.raises(UserError, match="caps, scales or biases"):
        check_head(scaled, "capped")
