"""The teacher in 4, 16 and 32 bits against plain transformers, and how far NF4 is off."""

import torch
from conftest import make_rollouts

from poweropd_lite.method.batch import Stops, micro_batches
from poweropd_lite.method.logprobs import Sampling, score_tokens
from poweropd_lite.models.teacher import load_teacher

CPU = torch.device("cpu")


def logprobs(teacher, rollouts, budget=8192):
    batches = micro_batches(rollouts, budget, Stops("raw"), CPU)
    out = torch.zeros(sum(len(b.order) for b in batches))
    for batch in batches:
        hidden = batch.select(teacher.hidden(batch.ids))
        out[batch.order] = score_tokens(hidden, teacher.head, batch.teacher_ids, Sampling(), "full").logprob
    return out


def plain_logprobs(model, rollouts):
    rows = []
    for r in rollouts:
        ids = torch.tensor([r.prompt_ids + r.completion_ids])
        with torch.no_grad():
            z = model(input_ids=ids).logits[0, len(r.prompt_ids) - 1 : -1].double()
        rows.append(z.log_softmax(-1).gather(-1, ids[0, len(r.prompt_ids) :, None]).squeeze(-1))
    return torch.cat(rows)


def test_the_teacher_is_four_bit_frozen_and_close(student_model, teacher_model, prompts, pair):
    from bitsandbytes.nn import Linear4bit

    rollouts = make_rollouts(student_model, prompts[:24], pair)
    exact = plain_logprobs(teacher_model, rollouts)
    teacher = load_teacher("bundled", 4, CPU, torch.float32)
    four_bit = [m for m in teacher.model.modules() if isinstance(m, Linear4bit)]
    assert len(four_bit) == 4 * 7  # every linear layer of its four blocks, not the head
    assert all(m.weight.quant_state.nested and m.weight.quant_type == "nf4" for m in four_bit)
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training
    probability_error = (logprobs(teacher, rollouts).exp() - exact.exp()).abs().mean()
    assert probability_error < 0.02
    assert (logprobs(teacher, rollouts) - exact).abs().max() > 1e-3  # it is quantised


def test_full_precision_teachers_agree_with_transformers(student_model, teacher_model, prompts, pair):
    rollouts = make_rollouts(student_model, prompts[:12], pair)
    exact = plain_logprobs(teacher_model, rollouts)
    teacher = load_teacher("bundled", 32, CPU, torch.float32)
    torch.testing.assert_close(logprobs(teacher, rollouts), exact.float(), atol=2e-4, rtol=1e-4)
    half = load_teacher("bundled", 16, CPU, torch.float32)
    assert half.head.weight.dtype == torch.bfloat16
    assert (logprobs(half, rollouts).exp() - exact.exp()).abs().mean() < 0.01


def test_scores_do_not_depend_on_the_token_budget(student_model, prompts, pair):
    rollouts = make_rollouts(student_model, prompts[:12], pair)
    teacher = load_teacher("bundled", 4, CPU, torch.float32)
    torch.testing.assert_close(logprobs(teacher, rollouts, 240), logprobs(teacher, rollouts), atol=1e-3, rtol=1e-3)
