"""Counts, places and texts of a step's tokens, against numbers by hand and NumPy."""

import numpy as np
import pytest
import torch

from poweropd_lite.method.reward import REWARDS
from poweropd_lite.run.metrics import due, pieces, token_stats


def test_five_rewards_by_hand():
    found = token_stats(torch.tensor([-1.0, 0.0, 1.0, 0.5, -0.25]), [2, 3], (-1.0, 1.0), 4)
    counts = [0] * 100
    for place in (0, 50, 99, 75, 37):  # -1, 0, 1 (in the last, closed bin), 0.5, -0.25: bins are 0.02 wide
        counts[place] += 1
    assert found["counts"] == counts
    assert found["position_width"] == 1
    assert found["position_count"] == [2, 2, 1, 0]
    assert found["position_sum"] == [0.0, 0.5, -0.25, 0.0]
    assert found["position_min"] == [-1.0, 0.0, -0.25, 0.0]
    assert found["position_max"] == [1.0, 0.5, -0.25, 0.0]


def test_what_is_outside_or_not_finite_is_counted_beside():
    rewards = torch.tensor([-41.0, 11.0, float("nan"), float("-inf"), -40.0, 10.0, 0.25])
    found = token_stats(rewards, [7], REWARDS["log_ratio"].range, 7)
    assert (found["below"], found["above"], found["not_finite"]) == (1, 1, 2)
    assert sum(found["counts"]) == 3
    assert found["counts"][0] == 1 and found["counts"][99] == 1 and found["counts"][80] == 1  # 0.5 nats a bin
    assert found["position_count"] == [1, 1, 0, 0, 1, 1, 1]  # the two that are not finite are in no place


@pytest.mark.parametrize("longest", [1, 63, 64, 65, 112, 1024])
def test_against_numpy_in_float64(longest):
    random = np.random.default_rng(longest)
    lengths = random.integers(0, longest + 1, 32)
    rewards = random.uniform(-1, 1, lengths.sum()).astype(np.float32)
    found = token_stats(torch.from_numpy(rewards), lengths.tolist(), (-1.0, 1.0), longest)
    exact = rewards.astype(np.float64)
    assert found["counts"] == np.histogram(exact, bins=100, range=(-1.0, 1.0))[0].tolist()
    width = found["position_width"]
    assert len(found["position_count"]) <= 64 and len(found["position_count"]) * width >= longest
    slots = np.concatenate([np.arange(n) for n in lengths]) // width
    for slot, count in enumerate(found["position_count"]):
        there = exact[slots == slot]
        assert count == there.size
        if count:
            assert found["position_sum"][slot] == pytest.approx(there.sum(), rel=1e-5, abs=1e-12)
            assert found["position_min"][slot] == pytest.approx(there.min(), rel=1e-5)
            assert found["position_max"][slot] == pytest.approx(there.max(), rel=1e-5)


def test_the_first_ten_steps_every_tenth_and_the_last_are_kept():
    assert [step for step in range(1, 36) if due(step, 35)] == [*range(1, 11), 20, 30, 35]


def test_a_character_of_several_tokens_is_the_last_ones():
    letters = "a\u00e9\u6f22b"  # one, two, three and one byte of UTF-8
    ids = list(letters.encode())
    texts = pieces(lambda part: bytes(part).decode(errors="replace"), ids)
    assert texts == ["a", "", "\u00e9", "", "", "\u6f22", "b"]
