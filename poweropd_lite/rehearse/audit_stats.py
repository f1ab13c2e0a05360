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
    p95 = float(numpy.quantile(size.numpy(), 0.95))  # torch.quantile takes 16 million values at most
    return {"mean": error.mean().item(), "mean_abs": size.mean().item(), "p95_abs": p95, "max_abs": size.max().item()}


def reward_error(r: Tensor, s: Tensor) -> Numbers:
    """Returns what docs/audit.md lists of the candidate's rewards `s` against the reference's `r`, both [N].

    None where a number is not defined: shares of the reward mass sum |r| when that is 0, the correlation when r or s is
    the same for every token.
    """
    mass, count, x, y = r.abs().sum().item(), len(r), r - r.mean(), s - s.mean()
    flipped, vanished = (r.sign() * s.sign()) < 0, (r != 0) & (s == 0)
    shares = {"flipped": flipped, "vanished": vanished, "appeared": (r == 0) & (s != 0)}
    masses = {"relative_error": (s - r).abs(), "flipped_mass": r.abs()[flipped], "vanished_mass": r.abs()[vanished]}
    return {
        "mean_abs_error": (s - r).abs().mean().item(),
        **{f"{name}_share": which.sum().item() / count for name, which in shares.items()},
        **{name: values.sum().item() / mass if mass > 0 else None for name, values in masses.items()},
        "correlation": None if _constant(r, s) else (x @ y / (x.norm() * y.norm())).item(),
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
    if _constant(r, s):
        correlation = torch.full_like(correlation, torch.nan)
    return {"flipped_mass": _middle(flips / mass), "correlation": _middle(correlation.clamp(-1.0, 1.0))}


def _constant(r: Tensor, s: Tensor) -> bool:
    return any(bool((values == values[0]).all()) for values in (r, s))


def _middle(values: Tensor) -> list[float] | None:
    if not values.isfinite().all():
        return None
    return torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
