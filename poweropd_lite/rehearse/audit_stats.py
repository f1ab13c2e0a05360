"""How far rewards from one model are from those of another: pure maths on float64 tensors of N tokens.

The reference's rewards are r, the candidate's s. Sums run over all N tokens. A reward of exactly 0 has no sign: a token
flips only from above zero to below, or back.
"""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

Numbers = dict[str, float | None]


def log_prob_error(reference: Tensor, candidate: Tensor) -> dict[str, float]:
    """Returns mean, mean absolute, 95th percentile of the absolute, and largest error of log-probs [N], nats."""
    error = candidate.double() - reference.double()
    size = error.abs()
    return {
        "mean": error.mean().item(),
        "mean_abs": size.mean().item(),
        "p95_abs": float(numpy.quantile(size.numpy(), 0.95)),  # torch.quantile takes 16 million values at most
        "max_abs": size.max().item(),
    }


def reward_error(r: Tensor, s: Tensor) -> Numbers:
    """Returns what docs/audit.md lists of the candidate's rewards `s` against the reference's `r`, both [N].

    None where a number is not defined: shares of the reward mass sum |r| when that is 0, the correlation when r or s is
    the same for every token.
    """
    mass, count = r.abs().sum().item(), len(r)
    flipped, vanished, appeared = (r.sign() * s.sign()) < 0, (r != 0) & (s == 0), (r == 0) & (s != 0)
    of_mass = {
        "relative_error": (s - r).abs().sum().item(),
        "flipped_mass": r.abs()[flipped].sum().item(),
        "vanished_mass": r.abs()[vanished].sum().item(),
    }
    return {
        "mean_abs_error": (s - r).abs().mean().item(),
        "flipped_share": flipped.sum().item() / count,
        "vanished_share": vanished.sum().item() / count,
        "appeared_share": appeared.sum().item() / count,
        **{name: value / mass if mass > 0 else None for name, value in of_mass.items()},
        "correlation": _correlation(r, s),
        "mean_abs_reward": mass / count,
    }


def intervals(r: Tensor, s: Tensor, lengths: Sequence[int], resamples: int, seed: int) -> dict[str, list[float] | None]:
    """Returns 95% percentile intervals of flipped_mass and correlation, by drawing whole rollouts with replacement.

    `lengths` are the tokens of each rollout, whose sum is N. Tokens of one rollout hang together, so drawing tokens
    would make the intervals too narrow. None where a number is not defined in every resample.
    """
    x, y = r - r.mean(), s - s.mean()  # centred once: no difference of large sums below
    flipped = r.abs() * ((r.sign() * s.sign()) < 0)
    columns = torch.stack([torch.ones_like(r), r.abs(), flipped, x, y, x * x, y * y, x * y], -1)
    rollout = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sums = torch.zeros(len(lengths), columns.shape[1], dtype=torch.float64).index_add_(0, rollout, columns)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(lengths), (resamples, len(lengths)), generator=generator)
    weights = torch.zeros(resamples, len(lengths), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    n, mass, flips, sx, sy, sxx, syy, sxy = (weights @ sums).unbind(-1)
    correlation = (sxy - sx * sy / n) / ((sxx - sx * sx / n) * (syy - sy * sy / n)).sqrt()
    if _same(r) or _same(s):
        correlation = torch.full_like(correlation, torch.nan)
    return {"flipped_mass": _middle(flips / mass), "correlation": _middle(correlation.clamp(-1.0, 1.0))}


def _correlation(r: Tensor, s: Tensor) -> float | None:
    if _same(r) or _same(s):
        return None
    x, y = r - r.mean(), s - s.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def _same(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _middle(values: Tensor) -> list[float] | None:
    if not values.isfinite().all():
        return None
    return torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
