"""Divergences of whole distributions: values by hand and autograd, and TRL's formula for the skewed one."""

import pytest
import torch

from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, reverse_kl
from poweropd_lite.rewards.whole import full_jsd, full_power, top_k

P, Q = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64), torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64)


def test_worked_values():
    # -sum q (p - q) log q = -(0.25 * 0.25 * log 0.25 + 0.5 * -0.25 * log 0.5) = 0
    assert full_power(P.log(), Q.log(), alpha=1.0)[0].item() == pytest.approx(0.0, abs=1e-12)
    # alpha 2: -(0.25 * 0.1875 * log 0.25 + 0.5 * -0.1875 * log 0.5) = 0.09375 log 2 - 0.09375 log 2
    assert full_power(P.log(), P.log(), alpha=2.0)[0].item() == 0.0
    # m = (0.375, 0.375, 0.25): 2 * 0.5 * (0.5 log(4/3) + 0.25 log(2/3))
    assert full_jsd(P.log(), Q.log())[0].item() == pytest.approx(0.5 * 0.28768207 - 0.25 * 0.40546511, abs=1e-8)
    # of p's two likeliest (0.5, 0.25 -> 2/3, 1/3), q' = (1/3, 2/3): (1/3) log(1/2) + (2/3) log 2
    assert top_k(P.log(), Q.log(), k=2)[0].item() == pytest.approx(0.23104906, abs=1e-8)
    kl = (Q * (Q.log() - P.log())).sum().item()
    assert top_k(P.log(), Q.log(), k=3)[0].item() == pytest.approx(kl)


def definition(name, log_p, log_q):
    """Each as its formula reads, with autograd through q."""
    p, q = log_p.exp(), log_q.exp()
    if name == "full_power":
        return -((q * (p**2 - q**2)).detach() * log_q).sum(-1)
    if name == "full_jsd":
        m = 0.3 * p + 0.7 * q
        return (0.3 * p * (log_p - m.log()) + 0.7 * q * (log_q - m.log())).sum(-1)
    best = log_p.topk(3).indices
    p, q = log_p.gather(-1, best).log_softmax(-1), log_q.gather(-1, best).log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1)


@pytest.mark.parametrize("rows", [(11, 11), (13, 11), (11, 13)])
@pytest.mark.parametrize("name", ["full_power", "full_jsd", "top_k"])
def test_gradient_of_hidden_states_and_head_equals_autograd(name, rows):
    """Heads of other sizes too: then the sum is over the rows that both have."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = draw(7, 4).requires_grad_(), draw(rows[0], 4).requires_grad_()
    theirs, their_weight = draw(7, 3), draw(rows[1], 3)
    part = torch.rand(7, generator=generator, dtype=torch.float64)
    call, settings = {
        "full_power": (full_power, {"alpha": 2.0}),
        "full_jsd": (full_jsd, {"beta": 0.3}),
        "top_k": (top_k, {"k": 3}),
    }[name]
    ids = torch.zeros(7, dtype=torch.long)
    found = reverse_kl(
        hidden, Head(weight), theirs, Head(their_weight), ids, ids, Sampling(),
        lambda _, chunk: part[chunk], lambda p, q: call(p, q, **settings),
    ).kl.sum()  # fmt: skip
    shared = min(rows)
    log_q, log_p = (hidden @ weight.T).log_softmax(-1), (theirs @ their_weight.T).log_softmax(-1)
    wanted = (definition(name, log_p[:, :shared], log_q[:, :shared]) * part).sum()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-10)
    for mine, plain in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(wanted, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, plain, atol=1e-10, rtol=1e-8)
