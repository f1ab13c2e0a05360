"""What a reward does to a set of tokens: pure maths on float64 tensors of N tokens.

r is the reward, g = ||onehot - q|| the norm of a token's score function with respect to the logits: |r| g is the norm
of the token's own gradient there. "Top 1%" is the ceil(N / 100) largest.
"""

import math
from typing import Any

import numpy
import torch
from torch import Tensor

DECILES = 10


def reward_facts(r: Tensor, pull: Tensor | None, log_ratio: Tensor | None, live: float) -> dict[str, Any]:
    """Returns what docs/advise.md lists of rewards `r` [N]; `pull` is g [N]. None where a number is not defined.

    Without `pull` there is no gradient of single tokens, without `log_ratio` no sign to compare with.
    """
    count, mass = len(r), r.abs().sum().item()
    p05, p95 = numpy.quantile(r.numpy(), [0.05, 0.95]).tolist()  # torch.quantile takes 16 million values at most
    return {
        "tokens": count,
        "live_share": _share(r.abs() > live),
        "positive_share": _share(r > 0),
        "negative_share": _share(r < 0),
        "zero_share": _share(r == 0),
        "positive_mass": r.clamp_min(0.0).sum().item() / mass if mass > 0 else None,
        "sign_unlike_log_ratio": None if log_ratio is None else _share(r.sign() * log_ratio.sign() < 0),
        "mean": r.mean().item(),
        "mean_abs": mass / count,
        "variance": r.var(correction=0).item(),
        "min": r.min().item(),
        "p05": p05,
        "p95": p95,
        "max": r.max().item(),
        "tail": top_share(r.abs()),
        "top_gradient": None if pull is None else top_share(r.abs() * pull),
        "effective_share": None if pull is None else effective_share(r.abs() * pull),
    }


def by_decile(r: Tensor, pull: Tensor, log_ratio: Tensor, place: Tensor, live: float) -> list[dict[str, Any] | None]:
    """Returns reward_facts of each tenth of the completions by tokens' `place` [N] (0 to 9); None: an empty one."""
    parts = [place == i for i in range(DECILES)]
    return [reward_facts(r[p], pull[p], log_ratio[p], live) if p.any() else None for p in parts]


def places(lengths: tuple[int, ...]) -> Tensor:
    """Returns the decile, 0 to 9, of each token of rollouts of these lengths: floor(10 i / n) for token i of n."""
    return torch.cat([torch.arange(n) * DECILES // max(n, 1) for n in lengths])


def top_share(weights: Tensor) -> float | None:
    """Returns the share of the sum of `weights` [N], at least 0, that the top 1% hold; None if they are all 0."""
    total = weights.sum()
    return (weights.topk(math.ceil(len(weights) / 100)).values.sum() / total).item() if total > 0 else None


def effective_share(weights: Tensor) -> float | None:
    """Returns (sum w)^2 / (N sum w^2): 1 if all tokens weigh the same, 1/N if one has all; None if they are all 0."""
    total = weights.sum()
    return (total / len(weights) * total / weights.square().sum()).item() if total > 0 else None


def truncation(mass: Tensor, kept: Tensor, bias: Tensor) -> dict[str, float]:
    """Returns what a sampling keeps at N positions: its ids' `mass`, 1 in `kept` for one of them, `bias` ||s - q||."""
    return {
        "kept_mass": mass.mean().item(),
        "kept_mass_p05": float(numpy.quantile(mass.numpy(), 0.05)),
        "tokens_outside": 1.0 - kept.mean().item(),
        "bias": bias.mean().item(),
    }


def truncation_push(r: Tensor, pull: Tensor, kept: Tensor, bias: Tensor) -> dict[str, float | None]:
    """Returns the push of score `full` that comes from the truncation alone, as a share of the gradient.

    `push` is sum |r| ||s - q|| / sum |r| g, `net_push` sum r ||s - q|| / sum |r| g, over tokens that could be drawn.
    """
    inside = kept > 0
    r, pull, bias = r[inside], pull[inside], bias[inside]
    total = (r.abs() * pull).sum().item()
    if total == 0:
        return {"push": None, "net_push": None}
    return {"push": (r.abs() * bias).sum().item() / total, "net_push": (r * bias).sum().item() / total}


def _share(which: Tensor) -> float:
    return which.sum().item() / len(which)
