"""A mean over few seeds and its interval.

Seeds are few and drawn alike, so an interval is the textbook's: mean +- t * sd / sqrt(n), t with n - 1 degrees of
freedom (12.7 for two seeds, 4.3 for three). It holds what training and sampling vary; not what other problems would.
"""

import math
import statistics
from dataclasses import dataclass

LEVEL = 0.95  # as evaluate's own intervals
NORMAL = 1.96  # standard errors to either side, of a mean over many problems, at this level


@dataclass(frozen=True)
class Stat:
    """A quantity over seeds. `sd` (n - 1 in it) and `half`, the interval's half width, are None for one seed."""

    values: dict[int, float]  # by seed
    mean: float
    sd: float | None = None
    half: float | None = None


def is_noise(change: float, error: float) -> bool:
    """Whether a change of means over many problems, with its standard error, may be none at all."""
    return abs(change) <= NORMAL * error


def stat(values: dict[int, float]) -> Stat | None:
    """Returns the mean over seeds and its interval; None for no values."""
    if not values:
        return None
    mean = statistics.fmean(values.values())
    if len(values) == 1:
        return Stat(values, mean)
    sd = statistics.stdev(values.values())
    return Stat(values, mean, sd, t_quantile(len(values) - 1) * sd / math.sqrt(len(values)))


def difference(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float | None]:
    """Returns the difference of two means over seeds, and the half width of its interval, None if one has one seed.

    Of the same seeds, which share the order of the data, it is taken seed by seed; else the degrees of freedom are
    those of the fewer seeds, which is never too few.
    """
    if ours.keys() == theirs.keys():
        paired = stat({seed: ours[seed] - theirs[seed] for seed in ours})
        assert paired is not None, "a difference of no values"
        return paired.mean, paired.half
    a, b = stat(ours), stat(theirs)
    assert a is not None and b is not None, "a difference of no values"
    if a.sd is None or b.sd is None:
        return a.mean - b.mean, None
    error = math.sqrt(a.sd**2 / len(ours) + b.sd**2 / len(theirs))
    return a.mean - b.mean, t_quantile(min(len(ours), len(theirs)) - 1) * error


def t_quantile(degrees: int) -> float:
    """Returns t for which |T| <= t has probability LEVEL, T of Student's distribution with `degrees` >= 1."""
    low, high = 0.0, math.pi / 2
    for _ in range(200):  # bisection, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < LEVEL else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _inside(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)), exactly, for whole degrees: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(1 + odd, degrees - 2, 2):
        term *= (k / (k + 1)) * cosine**2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
