"""The rewards against RECIPE's worked values (float64) and the paper's three properties."""

import math

import pytest
import torch

from poweropd_lite.method import reward

# p, q, alpha, power, log ratio, clip to 1, tanh with tau 5: worked by hand
WORKED = [
    (0.5, 0.25, 1, 0.25, 0.693147, 0.693147, 0.137748),
    (0.5, 0.25, 2, 0.1875, 0.693147, 0.693147, 0.137748),
    (0.25, 0.5, 1, -0.25, -0.693147, -0.693147, -0.137748),
    (0.9, 0.6, 10, 0.342631823, 0.405465, 0.405465, 0.080916),
    (0.999, 0.9, 100, 0.904765586, 0.104360, 0.104360, 0.020869),
    (0.002, 0.0001, 1, 0.0019, 2.995732, 1.0, 0.536442),
    (1e-20, 0.9, 0.5, -0.948683298, -45.946341, -1.0, -1.000000),
    (1.0, 1.0, 500, 0.0, 0.0, 0.0, 0.0),
]


def logs(p: float, q: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([math.log(p)], dtype=torch.float64), torch.tensor([math.log(q)], dtype=torch.float64)


@pytest.mark.parametrize(("p", "q", "alpha", "power", "ratio", "clipped", "tanh"), WORKED)
def test_worked_values(p, q, alpha, power, ratio, clipped, tanh):
    log_p, log_q = logs(p, q)
    assert reward.power(log_p, log_q, alpha=alpha).item() == pytest.approx(power, abs=1e-9)
    assert reward.log_ratio(log_p, log_q).item() == pytest.approx(ratio, abs=1e-6)
    assert reward.clip(log_p, log_q, clip_limit=1.0).item() == pytest.approx(clipped, abs=1e-6)
    assert reward.tanh(log_p, log_q, tau=5.0).item() == pytest.approx(tanh, abs=1e-6)


def test_zscore_worked_values():
    log_p = torch.tensor([0.5, 0.25, 0.9], dtype=torch.float64).log()
    log_q = torch.tensor([0.25, 0.5, 0.6], dtype=torch.float64).log()
    moments = reward.log_ratio_moments(log_p, log_q)
    expected = torch.tensor([0.934101, -1.386611, 0.452510], dtype=torch.float64)
    torch.testing.assert_close(reward.zscore(log_p, log_q, **moments), expected, atol=1e-6, rtol=0)


def test_zscore_of_equal_ratios_is_zero_not_nan():
    log_p, log_q = torch.full((4,), -1.0), torch.full((4,), -2.0)
    moments = reward.log_ratio_moments(log_p, log_q)
    assert moments["std"].item() == pytest.approx(1e-8)
    assert reward.zscore(log_p, log_q, **moments).tolist() == [0.0] * 4


@pytest.fixture
def random_logs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = -60 * torch.rand(2, 20_000, generator=generator, dtype=torch.float64) ** 4
    return draw[0], draw[1]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1, 5, 10, 50, 100, 500])
def test_power_is_bounded_and_keeps_the_sign_of_the_log_ratio(random_logs, alpha):
    log_p, log_q = random_logs
    r = reward.power(log_p, log_q, alpha=alpha)
    assert r.abs().max() <= 1
    ratio = log_p - log_q
    assert (r * ratio >= 0).all()
    assert (r[ratio != 0].sign() == ratio[ratio != 0].sign()).double().mean() > (0.95 if alpha <= 10 else 0.4)


def test_power_over_alpha_tends_to_the_log_ratio(random_logs):
    log_p, log_q = random_logs
    errors = [
        (reward.power(log_p, log_q, alpha=a) / a - (log_p - log_q)).abs().max().item() for a in (1e-3, 1e-4, 1e-5)
    ]
    # The next term of the series is alpha (log^2 p - log^2 q) / 2: at most 1800 alpha here.
    assert errors[0] < 1.8 and errors[1] < 0.18 and errors[2] < 0.018


def test_no_gradient_flows_through_any_reward():
    log_p = torch.tensor([-1.0], requires_grad=True)
    log_q = torch.tensor([-2.0], requires_grad=True)
    one = torch.tensor(1.0)
    rewards = [
        reward.power(log_p, log_q, alpha=10),
        reward.log_ratio(log_p, log_q),
        reward.clip(log_p, log_q, clip_limit=1),
        reward.tanh(log_p, log_q, tau=5),
        reward.zscore(log_p, log_q, mean=one, std=one),
    ]
    assert [r.requires_grad for r in rewards] == [False] * 5
