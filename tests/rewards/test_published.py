"""Published rewards: worked values, and that each f_ reward's expected policy gradient is its divergence's, by enumeration."""

import math

import pytest
import torch

from poweropd_lite.rewards.published import PUBLISHED
from poweropd_lite.rewards.table import REWARDS

# p, q, and by hand: f_fkl, f_hellinger, f_jsd, f_tv, soft_log, relaxed
WORKED = [
    (0.5, 0.25, 1.0, 0.414214, 0.202733, 0.5, 0.526589, 0.693147),
    (0.25, 0.5, -0.5, -0.292893, -0.143841, -0.5, -0.526589, -0.693147),
    (0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.9, 0.01, 10.0, 8.486833, 1.908856, 0.5, 1.704714, 4.499810),  # u = 90: capped at 10
    (1e-6, 0.5, -0.999998, -0.998586, -0.346573, -0.5, -2.647760, -1.386294),  # log(0.2 / 0.8)
]
NAMES = ("f_fkl", "f_hellinger", "f_jsd", "f_tv", "soft_log", "relaxed")


@pytest.mark.parametrize("row", WORKED)
def test_worked_values(row):
    log_p, log_q = (torch.tensor([math.log(value)], dtype=torch.float64) for value in row[:2])
    for name, wanted in zip(NAMES, row[2:], strict=True):
        assert PUBLISHED[name].pay(log_p, log_q).item() == pytest.approx(wanted, abs=1e-6), name


def test_settings_of_their_own():
    log_p, log_q = torch.tensor([0.9]).log(), torch.tensor([0.01]).log()
    assert PUBLISHED["f_fkl"].pay(log_p, log_q, cap=100.0).item() == pytest.approx(89.0, rel=1e-4)
    assert PUBLISHED["relaxed"].pay(log_q, log_p, lam=0.1).item() == pytest.approx(math.log(1 / 9))
    assert PUBLISHED["f_fkl"].defaults == {"cap": 10.0} and PUBLISHED["relaxed"].defaults == {"lam": 0.2}


def test_extrapolated_is_the_log_ratio_at_1_and_moves_away_from_the_reference_above():
    log_p, log_q, log_ref = (torch.tensor([value], dtype=torch.float64).log() for value in (0.6, 0.3, 0.2))
    pay = PUBLISHED["extrapolated"].pay
    assert pay(log_p, log_q, log_ref=log_ref, lam=1.0).item() == pytest.approx(math.log(2))
    assert pay(log_p, log_q, log_ref=log_ref).item() == pytest.approx(1.25 * math.log(3) - math.log(1.5))


def test_controls():
    log_p, log_q = torch.full((3,), -1.0), torch.full((3,), -2.0)
    assert PUBLISHED["constant"].pay(log_p, log_q).tolist() == [1, 1, 1]
    noise = torch.tensor([0.0, 0.25, 0.75])
    assert PUBLISHED["random"].pay(log_p, log_q, noise=noise).tolist() == [-1, -0.5, 0.5]


DIVERGENCES = {
    "f_fkl": lambda u: u * u.log(),
    "f_hellinger": lambda u: (u.sqrt() - 1) ** 2,
    "f_jsd": lambda u: (u * u.log() - (1 + u) * ((1 + u) / 2).log()) / 2,
    "f_tv": lambda u: (u - 1).abs() / 2,
    "log_ratio": lambda u: -u.log(),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_expected_policy_gradient_is_the_gradient_of_its_f_divergence(name):
    """On a vocabulary of five, in float64: sum_v q_v r_v grad log q_v = -grad sum_v q_v f(p_v / q_v)."""
    generator = torch.Generator().manual_seed(1)
    z, log_p = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    z, log_p = z.requires_grad_(), log_p.log_softmax(0)
    log_q = z.log_softmax(0)
    divergence = (log_q.exp() * DIVERGENCES[name]((log_p - log_q).exp())).sum()
    (wanted,) = torch.autograd.grad(divergence, z, retain_graph=True)
    paid = REWARDS[name].pay(log_p, log_q.detach())
    (found,) = torch.autograd.grad(-(log_q.detach().exp() * paid * log_q).sum(), z)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_no_gradient_flows_through_any_of_them():
    log_p, log_q = torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    more = {"log_ref": torch.tensor([-1.5]), "noise": torch.tensor([0.5])}
    for name, entry in PUBLISHED.items():
        assert not entry.pay(log_p, log_q, **{need: more[need] for need in entry.needs}).requires_grad, name


def test_every_one_says_where_it_is_from_and_stays_finite_where_probabilities_vanish():
    logs = torch.tensor([-80.0, -1e-7, 0.0])
    log_p, log_q = (grid.flatten() for grid in torch.meshgrid(logs, logs, indexing="ij"))
    for name, entry in PUBLISHED.items():
        more = {"log_ref": log_q, "noise": torch.rand(9)}
        assert (
            entry.source and entry.pay(log_p, log_q, **{need: more[need] for need in entry.needs}).isfinite().all()
        ), name
