"""Families of docs/models.md in bfloat16: loop, teachers and update against the model's own forward in bfloat16, a line at a time.

Four of them; all with `ALL_FAMILIES=1 pytest -n0 tests/models/test_half.py`, some ten seconds more.

Both round, in other orders: what is held are means over some hundred tokens and a gradient's direction. (A wrong position,
mask or state is off by 0.3 nats and more on average; the tables' test holds the same code in float32 to 1e-4.)
"""

import os

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_family
from test_models_table import samples, token_rows

from poweropd_lite.base.config import load_config
from poweropd_lite.method.batch import Stops, micro_batches
from poweropd_lite.method.update import Objective, accumulate, token_logprobs
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher

SOME = ["qwen3", "qwen3_moe", "qwen3_5_text", "gemma3_text"]
CPU, HALF = torch.device("cpu"), torch.bfloat16


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two rows of log-probs are apart on average, nats."""
    return (one - other).abs().mean().item()


@pytest.mark.parametrize("family", FAMILIES if os.environ.get("ALL_FAMILIES") else SOME)
def test_a_family_in_half_precision(family, tmp_path, monkeypatch):
    student = load_student(load_config(student=make_family(family, tmp_path / "s"), lora_rank=2), CPU, HALF)
    assert {p.dtype for p in student.model.parameters() if not p.requires_grad} <= {HALF, torch.float32}
    with torch.no_grad():
        for i, (name, p) in enumerate(student.trainable().items()):
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    _, rollouts = samples(student, monkeypatch)
    with torch.no_grad(), student.compute():
        own = token_rows(student.model.eval(), rollouts)
    assert off(torch.tensor([x for r in rollouts for x in r.logprobs]), own) < 0.03

    batches = micro_batches(rollouts, 120, Stops("raw"), CPU)
    folder = make_family(family, tmp_path / "t", seed=1)
    for bits in (4, 16):
        teacher = load_teacher(folder, bits, CPU, HALF)
        with torch.no_grad():
            log_p = token_rows(teacher.model, rollouts)
        assert off(token_logprobs(teacher, batches, len(own), "teacher"), log_p) < 0.03

    accumulate(student, teacher, rollouts, Objective("power", {"alpha": 2.0}, stops=Stops("raw")), 120)
    parameters = list(student.trainable().values())
    ours = torch.cat([p.grad.flatten() for p in parameters])
    with student.compute():
        log_q = token_rows(student.model.train(), rollouts)
    loss = -((log_p.exp() ** 2 - log_q.detach().exp() ** 2) * log_q).sum()
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.99 and ours.norm() / theirs.norm() == pytest.approx(1, abs=0.1)
