"""What verdicts add up to: Avg@n, Pass@k, their intervals, and the difference of two models. Arrays in, numbers out.

`right` is always the number of right samples of each problem, int [problems], out of n. Intervals are 95% bootstraps over
problems: the problems are the sample that a benchmark is; how many answers were drawn to each is in the numbers already.
"""

from collections.abc import Sequence
from math import comb

import numpy as np

ROUNDS = 10_000  # resamples of a bootstrap
_DRAWS = 2**22  # numbers of them that are held at a time
LEVEL = 0.95


def avg_at(right: Sequence[int], n: int) -> np.ndarray:
    """Returns Avg@n of each problem: the share of right samples, float64 [problems]."""
    return np.asarray(right, dtype=np.float64) / n


def pass_at(right: Sequence[int], n: int, k: int) -> np.ndarray:
    """Returns the unbiased Pass@k of each problem, float64 [problems], from n >= k samples (arXiv 2107.03374, eq. 1).

    It is 1 - C(n - right, k) / C(n, k): the chance that k of the n samples, drawn at random, hold a right one.
    """
    if not 1 <= k <= n:
        raise ValueError(f"Pass@{k} needs at least {k} samples a problem, and there are {n}")
    return np.array([1.0 - comb(n - int(c), k) / comb(n, k) for c in right])


def best_of(values: np.ndarray, k: int) -> np.ndarray:
    """Returns the expected best score of k of a problem's n samples, float64 [problems], from scores [problems, n].

    The i-th smallest is the best of C(i - 1, k - 1) of the C(n, k) draws; of scores 0 and 1 this is `pass_at`.
    """
    n = values.shape[1]
    weights = np.array([comb(i, k - 1) / comb(n, k) for i in range(n)])
    return np.sort(values, axis=1) @ weights


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the interval of the mean of `values`, one a problem."""
    return macro_interval([values], seed)


def macro_interval(benchmarks: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """Returns the interval of the mean of the benchmarks' means: the problems of each are resampled within it."""
    random = np.random.default_rng(seed)
    means = np.zeros(ROUNDS)
    for values in benchmarks:
        means += _resampled_means(np.asarray(values, dtype=np.float64), random) / len(benchmarks)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The number of times that a problem is drawn is multinomial; equal values are drawn together."""
    distinct, counts = np.unique(values, return_counts=True)
    at_once = max(1, _DRAWS // len(distinct))  # a user's scores may all be different
    sizes = (min(at_once, ROUNDS - done) for done in range(0, ROUNDS, at_once))
    draws = (random.multinomial(len(values), counts / len(values), size=size) for size in sizes)
    return np.concatenate([drawn @ distinct / len(values) for drawn in draws])


def paired_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Returns the mean difference ours - theirs over benchmarks, and its interval; both have the same problems in order.

    Paired: what a problem's difficulty does to both scores falls out, so the interval is narrower than the two scores'.
    """
    gaps = [np.subtract(a, b, dtype=np.float64) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean([gap.mean() for gap in gaps])), macro_interval(gaps, seed)
