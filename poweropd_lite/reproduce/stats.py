"""Means over seeds, and their 95% Student-t intervals. Numbers in, numbers out.

Seeds are few and drawn alike, so the interval is the textbook's: mean +- t * sd / sqrt(n), t with n - 1 degrees of freedom (12.7 for two
seeds, 4.3 for three). It holds what training and sampling vary; not what other problems would change (docs/evaluation.md).
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95  # as evaluate's own intervals


@dataclass(frozen=True)
class Stat:
    """A quantity over seeds. `sd` is the sample's (n - 1); it and `half`, the interval's half width, are None for one seed."""

    values: dict[int, float]  # by seed
    mean: float
    sd: float | None
    half: float | None

    @property
    def n(self) -> int:
        """How many seeds there are."""
        return len(self.values)


def stat(values: Mapping[int, float]) -> Stat | None:
    """Returns the mean over seeds and its interval; None for no values."""
    found = list(values.values())
    if not found:
        return None
    mean = statistics.fmean(found)
    if len(found) == 1:
        return Stat(dict(values), mean, None, None)
    sd = statistics.stdev(found)
    return Stat(dict(values), mean, sd, t_quantile(len(found) - 1) * sd / math.sqrt(len(found)))


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Returns t for which |T| <= t has probability `level`, T of Student's distribution with `degrees` >= 1."""
    low, high = 0.0, math.pi / 2
    for _ in range(200):  # bisection, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _inside(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)), exactly, for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine = math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(1 + odd, degrees - 2, 2):
        term *= (k / (k + 1)) * cosine**2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * total)
