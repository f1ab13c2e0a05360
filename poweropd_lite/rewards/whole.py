"""Divergences of whole distributions beside reverse KL: exact where a reward of sampled tokens is an estimate.

Each takes log-probs [R, V] of R positions over the rows that both heads have, and returns its value [R, 1] and the
derivative of that by each q_v [R, V], from which d/d(z_v) = q_v (derivative_v - sum_w q_w derivative_w) follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poweropd_lite.rewards.reward import Reward

if TYPE_CHECKING:
    from torch import Tensor


def full_power(log_p: Tensor, log_q: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns -sum_v w_v log q_v with the constant w_v = q_v (p_v^alpha - q_v^alpha): the power reward's expected gradient."""
    reward = (alpha * log_p).exp() - (alpha * log_q).exp()
    return -(log_q.exp() * reward * log_q).sum(-1, keepdim=True), -reward


def full_jsd(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """Returns beta KL(p | m) + (1 - beta) KL(q | m) with m = beta p + (1 - beta) q, for `beta` above 0 and below 1.

    It is TRL's generalized_jsd_loss, the GKD trainer's (arXiv 2306.13649, equation 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta:g}, and has to be above 0 and below 1: at either end the loss is 0")
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).clamp_min(1e-45).log()
    value = beta * (p * (log_p - log_m)) + (1 - beta) * (q * (log_q - log_m))
    return value.sum(-1, keepdim=True), (1 - beta) * (log_q - log_m)


def top_k(log_p: Tensor, log_q: Tensor, *, k: int = 32) -> tuple[Tensor, Tensor]:
    """Returns the reverse KL over the teacher's `k` likeliest ids, both sides renormalised to them."""
    if k < 2 or k != int(k):
        raise ValueError(f"k is {k:g}, and has to be a whole number from 2 on: of one id renormalised the loss is 0")
    best = log_p.topk(min(int(k), log_p.shape[-1])).indices
    p, q = log_p.gather(-1, best).log_softmax(-1), log_q.gather(-1, best)
    mass = q.logsumexp(-1, keepdim=True)
    ratio = q - mass - p
    value = ((q - mass).exp() * ratio).sum(-1, keepdim=True)
    return value, log_q.new_zeros(log_q.shape).scatter_(-1, best, (ratio - value) * (-mass).clamp_max(80.0).exp())


WHOLE = {
    "full_power": Reward(compare=full_power, settings=("alpha",), bounded=False, range=(-1.0, 1.0), source="ours"),
    "full_jsd": Reward(compare=full_jsd, bounded=False, range=(-1.0, 0.0), source="GKD, arXiv 2306.13649"),
    "top_k": Reward(compare=top_k, bounded=False, range=(-40.0, 0.0), source="Revisiting OPD, arXiv 2603.25562"),
}
