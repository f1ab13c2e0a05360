"""Avg@n, Pass@k and their intervals against counting by hand, enumeration and plain resampling."""

from itertools import combinations

import numpy as np
import pytest

from poweropd_lite.evaluate.scores import avg_at, interval, macro_interval, paired_difference, pass_at


def test_avg_and_pass_by_hand():
    """Three problems with 0, 1 and 4 of 4 samples right."""
    assert avg_at([0, 1, 4], 4).tolist() == [0.0, 0.25, 1.0]
    assert pass_at([0, 1, 4], 4, 4).tolist() == [0.0, 1.0, 1.0]
    assert pass_at([0, 1, 4], 4, 1).tolist() == [0.0, 0.25, 1.0]
    assert pass_at([0, 1, 4], 4, 2).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    for right in range(9):
        samples = [True] * right + [False] * (8 - right)
        subsets = list(combinations(samples, k))
        assert pass_at([right], 8, k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="Pass@9 needs at least 9 samples a problem, and there are 8"):
        pass_at([1], 8, 9)


def test_the_interval_is_the_one_of_plain_resampling():
    values = avg_at(np.random.default_rng(1).integers(0, 9, 100), 8)
    random = np.random.default_rng(2)
    means = [values[random.integers(0, 100, 100)].mean() for _ in range(4000)]
    low, high = interval(values)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.006)
    # The normal approximation of a mean of a hundred: 1.96 standard errors each way.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.06)
    assert interval(values) == interval(values)  # seeded


def test_the_interval_of_a_macro_mean_weighs_benchmarks_alike():
    small, large = np.array([0.0, 1.0] * 15), np.array([0.0, 1.0] * 500)
    low, high = macro_interval([small, large])
    errors = np.sqrt(0.25 / 30 + 0.25 / 1000) / 2
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01) and high - low == pytest.approx(2 * 1.96 * errors, rel=0.06)


def test_a_paired_difference_forgets_how_hard_the_problems_are():
    """The second model is a tenth worse on every problem, be it hard or easy: the difference has no spread at all."""
    first = np.linspace(0.1, 1.0, 50)
    difference, (low, high) = paired_difference([first], [first - 0.1])
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))
    other = np.random.default_rng(0).permutation(first) - 0.1
    difference, (low, high) = paired_difference([first], [other])
    assert difference == pytest.approx(0.1) and high - low == pytest.approx(
        2 * 1.96 * (first - other).std() / 50**0.5, rel=0.06
    )
