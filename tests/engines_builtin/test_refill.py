"""Lines that are begun again where a completion has ended: the same completions as batch by batch, in fewer steps."""

import pytest
import torch
from conftest import make_engine

from poweropd_lite.engines import loop, refill
from poweropd_lite.evaluate.pace import seconds_left
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import EVALUATION, Draws

LONGEST, LINES = 70, 6


@pytest.fixture
def asked(prompts, pair):
    """Twenty prompts of 24 to 49 ids, their draws, and how they are sampled."""
    ids = [p.ids for p in sorted(prompts[:400], key=lambda p: len(p.ids))[::20]]
    sampling = Sampling(1.0, forbidden=torch.tensor(pair.forbidden))
    return ids, Draws(3, EVALUATION, tuple(i % 4 for i in range(20)), tuple(range(20))), sampling, LONGEST


@pytest.fixture
def engine(student_model, pair):
    """With a stop id that comes anywhere, so that completions have 1 to 70 tokens."""
    engine = make_engine(student_model, pair)
    engine.stop_ids |= {20}
    return engine


def streamed(engine, asked, lines=LINES):
    found = {}
    for told in engine.stream(*asked, lines):
        assert not set(dict(told.rollouts)) & set(found)
        found |= dict(told.rollouts)
        assert told.waiting <= 20 - len(found)
    return [found[i] for i in range(20)]


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.prompt_ids, one.completion_ids, one.finish) == (
            other.prompt_ids,
            other.completion_ids,
            other.finish,
        )
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fixed", [False, True])
def test_completions_are_those_of_one_batch(engine, asked, fixed, monkeypatch):
    """On a CPU, where lines are dropped at the end, and by the loop that CUDA captures, here in buckets of 16 columns."""
    monkeypatch.setattr(refill, "BUCKET", 16)
    monkeypatch.setattr(refill, "PROMPT_TOKENS", 100)  # two or three prompts at once
    whole, widths = engine.sample(*asked), set()
    lengths = sorted(len(r.completion_ids) for r in whole)
    assert lengths[:4] == [1, 1, 2, 2] and lengths[-3:] == [59, 70, 70]
    engine.fixed, real = fixed, engine.decoder.step
    engine.decoder.step = lambda *args: widths.add(args[3].shape[1]) or real(*args)
    same(streamed(engine, asked), whole)
    assert engine.decoder.keys.shape[3] == max(map(len, asked[0])) + LONGEST  # the cache is that of one batch
    assert len(widths) > (2 if fixed else 20)


def test_few_steps_are_for_nothing(engine, asked, monkeypatch):
    """Lines times steps that are computed, over those that the completions need."""
    computed, real = [], engine.decoder.step
    engine.fixed = True  # no line is dropped, as on a card
    for module in (loop, refill):
        monkeypatch.setattr(module, "LOOK_EVERY", 2)
    engine.decoder.step = lambda token, *rest: computed.append(len(token)) or real(token, *rest)
    shares = []
    for way in (lambda: streamed(engine, asked), lambda: in_batches(engine, asked)):
        computed.clear()
        needed = sum(len(r.completion_ids) - 1 for r in way())  # the first is drawn from the prompt
        shares.append(sum(computed) / needed)
    refilled, batches = shares
    assert refilled < 1.2 and batches > 2


def in_batches(engine, asked):
    found = {i: r for told in refill.in_batches(engine.sample, *asked, LINES) for i, r in told.rollouts}
    return [found[i] for i in range(20)]


def test_what_had_not_ended_begins_again_with_half_as_many_lines(engine, asked, capsys):
    whole, real, steps = engine.sample(*asked), engine.decoder.step, []

    def step(token, *rest):
        steps.append(len(token))
        if len(steps) == 60:
            raise RuntimeError("CUDA out of memory")
        return real(token, *rest)

    engine.decoder.step = step
    same(streamed(engine, asked), whole)
    assert "out of memory with 6 completions at once: from now on 3 at a time" in capsys.readouterr().out
    assert max(steps[:60]) == 6 and max(steps[60:]) == 3


def test_few_prompts_are_halved_from_their_own_number_and_steps_are_counted_on(engine, asked, capsys):
    few, real, calls = (asked[0][:3], asked[1].of(range(3)), *asked[2:]), engine.decoder.step, []

    def step(*given):
        calls.append(len(given[0]))
        if len(calls) == 5:
            raise RuntimeError("CUDA out of memory")
        return real(*given)

    engine.decoder.step = step
    told = list(engine.stream(*few, 256))
    assert "out of memory with 3 completions at once: from now on 1 at a time" in capsys.readouterr().out
    counted = [ended.steps for ended in told]
    assert counted == sorted(counted) and counted[-1] <= len(calls)


def test_a_model_that_transformers_decodes_is_answered_batch_by_batch(student_model, asked, pair, capsys):
    from transformers.activations import ACT2FN

    for layer in student_model.model.layers:
        layer.mlp.act_fn = ACT2FN["gelu"]
    engine = make_engine(student_model, pair)
    few = asked[0][:4], asked[1].of(range(4)), asked[2], 6
    found = {i: r for told in engine.stream(*few, 2) for i, r in told.rollouts}
    same([found[i] for i in range(4)], engine.sample(*few))
    assert "batch by batch" in capsys.readouterr().out


def test_the_seconds_left_by_hand():
    """8 lines, 100 steps in 50 s. 10 answers ended, of at most 90 tokens: 30 wait, 5 s each; then one of 90 tokens, 45 s."""
    told = refill.Ended([], waiting=30, steps=100, youngest=20)
    assert seconds_left(told, 50.0, 10, 90, 0, 8, 200) == 30 * 5 + 45
    assert seconds_left(told, 50.0, 10, 90, 4, 8, 200) == 34 * 5 + 45
    # One ended: not 50 s each, for at 200 tokens in 8 lines 25 steps, 12.5 s, end one; and if none did, too.
    assert seconds_left(told, 50.0, 1, 90, 0, 8, 200) == seconds_left(told, 50.0, 0, 90, 0, 8, 200) == 30 * 12.5 + 45
    assert seconds_left(refill.Ended([], 0, 100, 20), 50.0, 10, 90, 0, 8, 200) == 70 * 0.5  # the youngest line's rest
    # The open one is longer than any that ended: it may have all 200.
    assert seconds_left(refill.Ended([], 0, 100, 95), 50.0, 10, 90, 0, 8, 200) == 105 * 0.5
    assert seconds_left(refill.Ended([], 6), 50.0, 10, 90, 0, 8, 200) == 30  # batch by batch: no steps are known
    assert seconds_left(refill.Ended([], 6), 50.0, 0, 0, 0, 8, 200) is None
