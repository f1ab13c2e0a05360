"""The laboratory's formulas that TRL has too, against TRL's own functions on the same random logits."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.iw_opd import IWOPDTrainer

from poweropd_lite.rewards.paper import log_ratio
from poweropd_lite.rewards.part import Part
from poweropd_lite.rewards.whole import full_jsd

VOCABULARY, LENGTHS = 11, [7, 4]


def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's (with a gradient) and teacher's logits [2, 7, V], and the sampled ids [2, 7]."""
    generator = torch.Generator().manual_seed(2)
    ours, theirs = torch.randn(2, 2, 7, VOCABULARY, generator=generator, dtype=torch.float64)
    return ours.requires_grad_(), theirs, torch.randint(VOCABULARY, (2, 7), generator=generator)


def test_remaining_is_the_weight_of_trls_iw_opd_trainer():
    ours, theirs, ids = logits()
    inside = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    log_p = theirs.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    trainer = SimpleNamespace(
        temperature=1.0,
        iw_opd_gamma=0.5,
        iw_opd_epsilon=1e-8,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    labels = torch.where(inside, ids, -100)
    wanted = IWOPDTrainer._compute_iw_opd_loss(trainer, ours, ids, labels, log_p)
    (plain,) = torch.autograd.grad(wanted, ours)
    log_q = ours.log_softmax(-1).gather(-1, ids[..., None])[..., 0][inside]
    p, q = log_p[inside], log_q.detach()
    part = Part(weight="remaining", weight_gain=0.5).of(p, q, torch.zeros_like(q), LENGTHS)
    found = -(log_ratio(p, q) * part * log_q).sum() / len(q)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    (mine,) = torch.autograd.grad(found, ours)
    torch.testing.assert_close(mine, plain, atol=1e-12, rtol=0)
    mean = trainer._metrics["train"]["iw_opd/mean_weight"][0]
    assert abs(part.mean().item() - mean) < 1e-12 and 1.0 < mean < 1.5


def test_full_jsd_is_the_loss_of_trls_gkd_trainer():
    ours, theirs, _ = logits()
    for beta in (0.1, 0.5, 0.9):
        wanted = GKDTrainer.generalized_jsd_loss(ours, theirs, beta=beta, reduction="sum")
        (plain,) = torch.autograd.grad(wanted, ours)
        rows = ours.log_softmax(-1)
        value, slope = full_jsd(theirs.log_softmax(-1), rows.detach(), beta=beta)
        torch.testing.assert_close(value.sum(), wanted, atol=1e-10, rtol=0)
        q = rows.detach().exp()
        torch.testing.assert_close(q * (slope - (q * slope).sum(-1, keepdim=True)), plain, atol=1e-10, rtol=0)
