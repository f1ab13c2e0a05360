"""Which tokens stay in the loss and how much each counts, by worked values."""

import math

import pytest
import torch

from poweropd_lite.rewards.part import Part, dial, horizon, kept, remaining


def test_the_highest_share_stays_and_of_equal_ones_the_first():
    assert kept(torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2]), 0.4).tolist() == [0, 1, 0, 1, 0]
    assert kept(torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [1, 1, 0, 0]
    assert kept(torch.tensor([3.0, 2.0]), 0.01).tolist() == [1, 0]  # never none


def test_dial_ranks_by_ratio_and_difference_together():
    p, q = torch.tensor([0.5, 1e-4]).log().double(), torch.tensor([0.25, 1e-8]).log().double()
    assert dial(p, q, 0.0).tolist() == pytest.approx([math.log(2), math.log(1e4)], abs=1e-5)
    assert dial(p, q, 1.0).tolist() == pytest.approx([0.25, 9.999e-5], abs=1e-6)
    same = torch.tensor([-1.0, -2.0, 0.0])  # at b above 1 what both say alike is worth nothing, not NaN
    assert dial(same, torch.tensor([-1.0, -1.0, 0.0]), 1.2).tolist() == pytest.approx([0, 0.232544**1.2, 0], abs=1e-5)
    assert dial(p, q, 0.5).tolist() == pytest.approx(
        [math.sqrt(0.25 * math.log(2)), math.sqrt(9.999e-5 * math.log(1e4))], abs=1e-5
    )


def test_remaining_falls_with_what_came_before_in_each_completion():
    d = torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0])
    # |d| = 1, 1, 2 of 4: before each 0, 1/4, 2/4. Then 0, 3 of 3: 0, 0.
    assert remaining(d, [3, 2], 1.0).tolist() == pytest.approx([2.0, 1.75, 1.5, 2.0, 2.0])
    assert remaining(torch.zeros(2), [2], 0.5).tolist() == [1.5, 1.5]


def test_horizon_is_of_each_completion():
    assert horizon(torch.zeros(6), [4, 2], 3).tolist() == [1, 1, 1, 0, 1, 1]


def test_keep_over_completions_or_the_step_and_weight_together():
    log_p, log_q = torch.tensor([-1.0, -5.0, -1.0, -1.0]), torch.full((4,), -1.0)
    entropy, noise, lengths = torch.tensor([0.1, 0.2, 3.0, 4.0]), torch.tensor([0.9, 0.1, 0.2, 0.8]), [2, 2]

    def of(**settings):
        return Part(**settings).of(log_p, log_q, entropy, lengths, noise).tolist()

    assert of() == [1, 1, 1, 1]
    assert of(keep="entropy", keep_share=0.5, keep_over="completion") == [0, 1, 0, 1]
    assert of(keep="entropy", keep_share=0.5) == [0, 0, 1, 1]
    assert of(keep="abs", keep_share=0.5) == [1, 1, 0, 0]
    assert of(keep="abs", keep_share=0.5, keep_over="completion") == [0, 1, 1, 0]
    assert of(keep="random", keep_share=0.5) == [1, 0, 0, 1]
    assert of(keep="random", keep_share=0.5, weight="horizon", horizon=1) == [1, 0, 0, 0]
    assert of(keep="abs", keep_share=0.5, weight="remaining", weight_gain=1.0) == [2, 2, 0, 0]
