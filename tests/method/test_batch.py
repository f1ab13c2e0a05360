"""Micro-batches: the table of stop modes, N, and packing by length."""

from dataclasses import replace

import pytest
import torch

from poweropd_lite.method.batch import LossTokens, Stops, loss_lengths, loss_tokens, micro_batches
from poweropd_lite.method.rollout import Rollout

CPU = torch.device("cpu")
TEACHER_STOP = 90
MASK = Stops("mask", TEACHER_STOP)


def rollout(prompt: int, completion: list[int], finish: str) -> Rollout:
    zeros = tuple(0.0 for _ in completion)
    return Rollout(tuple(range(100, 100 + prompt)), tuple(completion), zeros, finish)


# stop mode, student ids, teacher ids and N for the completion 5 6 91, where 91 is the student's stop id
TABLE = [
    ("mask", [5, 6], [5, 6], 2),
    ("raw", [5, 6, 91], [5, 6, 91], 3),
    ("relabel", [5, 6, 90], [5, 6, 90], 3),
    ("cross_eos", [5, 6, 91], [5, 6, 90], 3),
]


@pytest.mark.parametrize(("mode", "student_ids", "teacher_ids", "count"), TABLE)
def test_stop_modes(mode, student_ids, teacher_ids, count):
    stopped = rollout(3, [5, 6, 91], "stop")
    stops = Stops(mode, TEACHER_STOP)
    tokens = loss_tokens(stopped, stops)
    assert (list(tokens.student), list(tokens.teacher), tokens.sampled) == (student_ids, teacher_ids, 2)
    assert loss_lengths([stopped], stops) == [count]
    truncated = rollout(3, [5, 6, 7], "length")
    assert loss_tokens(truncated, stops) == LossTokens((5, 6, 7), (5, 6, 7), 3)
    assert loss_lengths([stopped, truncated], stops) == [count, 3]


@pytest.mark.parametrize("mode", ["mask", "raw", "relabel", "cross_eos"])
def test_each_token_is_predicted_from_the_position_before_it(mode):
    (batch,) = micro_batches([rollout(3, [5, 6, 91], "stop")], 100, Stops(mode, TEACHER_STOP), CPU)
    assert batch.ids.tolist() == [[100, 101, 102, 5, 6, 91]]
    count = 2 if mode == "mask" else 3
    assert batch.columns.tolist() == [2, 3, 4][:count]
    hidden = torch.arange(6.0)[None, :, None]
    assert batch.select(hidden).squeeze(-1).tolist() == [2.0, 3.0, 4.0][:count]
    assert batch.engine.isnan().tolist() == [False, False, True][:count]  # no log-prob of the stop is compared


def test_packing_keeps_to_the_budget_and_loses_no_token():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (50,), generator=generator).tolist()
    rollouts = [rollout(1 + n % 7, list(range(n)), "length" if n % 2 else "stop") for n in lengths]
    batches = micro_batches(rollouts, 100, MASK, CPU)
    assert all(batch.ids.numel() <= 100 for batch in batches)
    order = torch.cat([batch.order for batch in batches])
    assert sorted(order.tolist()) == list(range(sum(loss_lengths(rollouts, MASK))))
    wanted = [i for r in rollouts for i in loss_tokens(r, MASK).student]
    got = torch.cat([batch.student_ids for batch in batches])[order.argsort()]
    assert got.tolist() == wanted
    padding = sum((batch.ids.numel()) for batch in batches) / sum(len(r) for r in rollouts)
    assert padding < 1.25


def test_only_the_stop_token_gives_an_empty_loss_and_no_micro_batch():
    alone = rollout(3, [91], "stop")
    assert loss_lengths([alone], MASK) == [0]
    assert micro_batches([alone], 100, MASK, CPU) == []
    (batch,) = micro_batches([alone, rollout(2, [4, 91], "stop")], 100, MASK, CPU)
    assert (batch.student_ids.tolist(), batch.order.tolist()) == ([4], [0])


def test_a_teacher_with_prompts_of_its_own_has_ids_and_columns_of_its_own_for_the_same_tokens():
    """A student prompt of 3 ids beside a teacher's of 5, and one that both read alike; six ids fit once each."""
    longer = replace(rollout(3, [5, 6, 7], "length"), teacher_prompt_ids=(80, 81, 82, 83, 84))
    alike = rollout(4, [8, 9], "length")
    mine, theirs = (micro_batches([longer, alike], 16, MASK, CPU, side) for side in ("student", "teacher"))
    assert [b.ids.tolist() for b in mine] == [[[100, 101, 102, 5, 6, 7], [100, 101, 102, 103, 8, 9]]]
    assert [b.ids.tolist() for b in theirs] == [[[80, 81, 82, 83, 84, 5, 6, 7], [100, 101, 102, 103, 8, 9, 0, 0]]]
    assert (mine[0].columns.tolist(), theirs[0].columns.tolist()) == ([2, 3, 4, 3, 4], [4, 5, 6, 3, 4])
    for name in ("lines", "student_ids", "teacher_ids", "order"):
        assert torch.equal(getattr(mine[0], name), getattr(theirs[0], name))
    assert len(longer) == 8 and len(micro_batches([longer, alike], 15, MASK, CPU)) == 2  # the longer of both is packed
