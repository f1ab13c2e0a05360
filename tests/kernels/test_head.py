"""The head's kernels in Triton's interpreter, against the plain chunks that they stand for and against float64."""

import pytest
import torch

from poweropd_lite.kernels import head
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, score_tokens

ROWS = 5000  # more than a block of the kernels, and no multiple of one


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(ROWS, 16, generator=g)
    ids = torch.randint(0, ROWS, (9,), generator=g)
    ids[0] = 4990  # one that could not be drawn
    return torch.randn(9, 16, generator=g), weight, ids, torch.randn(9, generator=g)


@pytest.fixture
def kernels(monkeypatch):
    """Returns what turns the kernels on, on the CPU, for the rest of a test."""
    return lambda: monkeypatch.setattr(head, "usable", lambda tensor: True)


def test_facts_of_a_row_are_those_of_float64():
    g = torch.Generator().manual_seed(2)
    logits = 8 * torch.randn(6, ROWS, generator=g)
    logits[0, 17] = 300.0  # nearly certain: the rest is 1e-112, which is 0 in float32
    logits[1, 4999] = logits[1].max() + 12
    logits[2, ::7] = -1e30
    logits[3] = 3.25  # all alike: log of 5,000 and an entropy that is the same
    top, total, dot = head.facts(logits)
    z = logits.double()
    shifted = z - z.amax(-1, keepdim=True)
    e = shifted.exp()
    rest = e.scatter(-1, shifted.argmax(-1, keepdim=True), 0.0).sum(-1, keepdim=True)
    assert torch.equal(top, logits.amax(-1, keepdim=True))
    torch.testing.assert_close(total.double(), rest.log1p(), rtol=2e-6, atol=1e-38)
    torch.testing.assert_close(dot.double(), (e * shifted).sum(-1, keepdim=True), rtol=2e-6, atol=1e-30)
    assert total[3].item() == pytest.approx(8.517193, abs=2e-6)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(forbidden=torch.arange(4980, ROWS))])
@pytest.mark.parametrize("score", ["full", "sampled"])
@pytest.mark.parametrize("trains", [False, True])
def test_scores_and_gradients_are_those_of_the_plain_chunks(case, kernels, sampling, score, trains):
    hidden, weight, ids, part = case
    found = []
    for _ in range(2):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains)
        got = score_tokens(x, Head(w), ids, sampling, score, lambda log_q, rows: part[rows] * log_q)
        got.score.sum().backward()
        found.append([*got, x.grad, w.grad])
        kernels()
    for plain, ours in zip(*found, strict=True):
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=3e-6, atol=3e-6)


def test_bent_logits_and_a_bias_reach_the_kernels_and_the_gradient(case, kernels):
    """A soft cap and a bias are made outside of them, before and after."""
    hidden, weight, ids, part = case
    found = []
    for _ in range(2):
        x, w, b = (t.clone().requires_grad_() for t in (hidden, weight, torch.linspace(-2, 2, ROWS)))
        sampling = Sampling(forbidden=torch.arange(4980, ROWS))
        got = score_tokens(x, Head(w, b, 0.8, 5.0), ids, sampling, "full", lambda log_q, rows: part[rows] * log_q)
        got.score.sum().backward()
        found.append(
            [*got, x.grad, w.grad, b.grad, head.target_logprobs(hidden, Head(weight, b.detach(), 0.8, 5.0), ids)]
        )
        kernels()
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=3e-6, atol=3e-6)


def test_half_precision_hidden_states_get_their_gradient(case, kernels):
    hidden, weight, ids, _ = case
    exact = hidden.bfloat16().double().requires_grad_()
    score_tokens(exact, Head(weight.bfloat16().double()), ids, Sampling(), "full").score.sum().backward()
    kernels()
    x = hidden.bfloat16().requires_grad_()
    score_tokens(x, Head(weight.bfloat16()), ids, Sampling(), "full").score.sum().backward()
    error = (x.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 0.004  # a unit of bfloat16's last place is 0.0078


def test_what_is_not_finite_stays_so(kernels):
    logits = torch.zeros(2, ROWS)
    logits[0, 4321] = torch.nan
    _, total, _ = head.facts(logits)
    assert total[0].isnan() and total[1].item() == pytest.approx(8.517193, abs=2e-6)
