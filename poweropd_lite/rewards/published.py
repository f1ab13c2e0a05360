"""Published rewards of a sampled token, and two controls: the laboratory of docs/lab.md.

d = log p - log q, u = p / q. The four f_ rewards are u f'(u) - f(u) up to a constant: the policy gradient with that reward
is, in expectation, the gradient of D_f = sum_v q_v f(p_v / q_v) (OPD+, arXiv 2606.01039). Settings are a function's own
arguments, which reward_settings gives: their defaults stand here alone.

A new reward is a function here with its entry below, and a worked value in tests/rewards/test_published.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poweropd_lite.rewards.paper import log_ratio
from poweropd_lite.rewards.reward import Reward

if TYPE_CHECKING:
    from torch import Tensor


def f_fkl(log_p: Tensor, log_q: Tensor, *, cap: float = 10.0) -> Tensor:
    """Returns u - 1, at most `cap`: forward KL, f = u log u. Uncapped its variance is what the teacher alone likes."""
    if cap <= 0:
        raise ValueError(f"cap is {cap:g}, and has to be above 0")
    return log_ratio(log_p, log_q).expm1().clamp_max(cap)


def f_hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns sqrt(u) - 1: the squared Hellinger distance, f = (sqrt(u) - 1)^2."""
    return (log_ratio(log_p, log_q) / 2).expm1()


def f_jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns log((1 + u) / 2) / 2: the Jensen-Shannon divergence, f = (u log u - (1 + u) log((1 + u) / 2)) / 2."""
    d = log_ratio(log_p, log_q)
    return (d.logaddexp(d.new_zeros(())) - math.log(2)) / 2


def f_tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns sign(d) / 2: total variation, f = |u - 1| / 2."""
    return log_ratio(log_p, log_q).sign() / 2


def soft_log(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns sign(d) log(1 + |d|)."""
    d = log_ratio(log_p, log_q)
    return d.sign() * d.abs().log1p()


def relaxed(log_p: Tensor, log_q: Tensor, *, lam: float = 0.2) -> Tensor:
    """Returns max(d, log(lam / (1 - lam))): a floor under the log ratio, for `lam` above 0 and below 1."""
    if not 0 < lam < 1:
        raise ValueError(f"lam is {lam:g}, and has to be above 0 and below 1")
    return log_ratio(log_p, log_q).clamp_min(math.log(lam / (1 - lam)))


def extrapolated(log_p: Tensor, log_q: Tensor, *, log_ref: Tensor, lam: float = 1.25) -> Tensor:
    """Returns lam (log p - log ref) - (log q - log ref), where ref is the student without its adapter; d for `lam` 1."""
    return (lam * (log_p - log_ref) - (log_q - log_ref)).detach()


def constant(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns 1, which asks for nothing: a control."""
    return log_ratio(log_p, log_q).new_ones(log_q.shape)


def random(log_p: Tensor, log_q: Tensor, *, noise: Tensor) -> Tensor:
    """Returns 2 noise - 1, uniform in [-1, 1) by (seed, step, token): a control."""
    return 2 * noise - 1


PUBLISHED = {
    "f_fkl": Reward(f_fkl, bounded=False, range=(-1.0, 10.0), cap="cap", source="OPD+, arXiv 2606.01039"),
    "f_hellinger": Reward(f_hellinger, bounded=False, range=(-1.0, 3.0), source="by OPD+'s formula"),
    "f_jsd": Reward(f_jsd, bounded=False, range=(-0.35, 3.0), source="OPD+, arXiv 2606.01039"),
    "f_tv": Reward(f_tv, range=(-0.5, 0.5), source="by OPD+'s formula; Sign-TV of TV-OPD, arXiv 2609.08341, halved"),
    "soft_log": Reward(soft_log, bounded=False, range=(-4.0, 2.5), source="arXiv 2607.13399"),
    "relaxed": Reward(relaxed, bounded=False, range=(-1.4, 10.0), source="REOPOLD, arXiv 2603.11137"),
    "extrapolated": Reward(
        extrapolated, needs=("log_ref",), bounded=False, range=(-40.0, 10.0), source="ExOPD, arXiv 2602.12125"
    ),
    "constant": Reward(constant, source="control"),
    "random": Reward(random, needs=("noise",), source="control"),
}
