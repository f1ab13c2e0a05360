"""The paper's rewards: what one sampled token is worth, from the teacher's and the student's log-prob of it.

Pure maths on tensors of any one shape; p is the teacher's probability and q the student's, both from the untruncated
softmax at temperature 1. Every function returns a detached tensor: a reward is a constant to the loss (PowerOPD, arXiv
2606.17199, where the reward stands under a stop-gradient).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poweropd_lite.rewards.reward import Reward

if TYPE_CHECKING:
    from torch import Tensor


def power(log_p: Tensor, log_q: Tensor, *, alpha: float) -> Tensor:
    """Returns p^alpha - q^alpha, in [-1, 1]; divided by alpha it tends to the log ratio as alpha tends to 0.

    Large alpha pays only where one of the two models is nearly certain: 0.6^10 is 0.006. (PowerOPD's own reward.)
    """
    return ((alpha * log_p).exp() - (alpha * log_q).exp()).detach()


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns log p - log q, vanilla on-policy distillation: unbounded below, since log p is."""
    return (log_p - log_q).detach()


def clip(log_p: Tensor, log_q: Tensor, *, clip_limit: float) -> Tensor:
    """Returns the log ratio clipped to [-clip_limit, clip_limit]."""
    return log_ratio(log_p, log_q).clamp(-clip_limit, clip_limit)


def tanh(log_p: Tensor, log_q: Tensor, *, tau: float) -> Tensor:
    """Returns tanh(log ratio / tau), in [-1, 1]."""
    return (log_ratio(log_p, log_q) / tau).tanh()


def zscore(log_p: Tensor, log_q: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Returns (log ratio - mean) / std, given the step's own `mean` and `std` (see `log_ratio_moments`).

    A token that the teacher likes better than the student does may be paid below zero: the sign is relative.
    """
    return (log_ratio(log_p, log_q) - mean) / std


def log_ratio_moments(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """Returns the `mean` and population `std` (at least 1e-8) of the log ratio over a whole step's tokens."""
    ratio = log_ratio(log_p, log_q)
    return {"mean": ratio.mean(), "std": ratio.std(correction=0).clamp_min(1e-8)}


PAPER = {
    "power": Reward(power, settings=("alpha",)),
    "log_ratio": Reward(log_ratio, bounded=False, range=(-40.0, 10.0)),
    "clip": Reward(clip, settings=("clip_limit",), unit="clip_limit"),
    "tanh": Reward(tanh, settings=("tau",)),
    "zscore": Reward(zscore, needs=("mean", "std"), bounded=False, range=(-10.0, 10.0)),
    "full_kl": Reward(bounded=False, range=(-40.0, 0.0)),
}
