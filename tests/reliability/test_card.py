"""The card's own faults and poisoned numbers, planted on the CPU: a few of what benchmarks/reliability/card.py and poison.py try."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_engine

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "reliability"))

import trials
from card import faulted

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import card_fault
from poweropd_lite.engines.guard import sample_whole
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import TRAINING, Draws


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"phase": "student", "fault": "driver", "call": 2}, "the card or its driver failed: CUDA error: uncorrectable ECC"),
        ({"phase": "sync", "fault": "memory", "call": 2}, "memory ran out: CUDA out of memory"),
    ],
)  # fmt: skip
def test_a_fault_of_the_card_is_one_message_that_names_the_way_on(tmp_path, plan, words):
    done = faulted(plan, tmp_path)
    assert trials.one_message(done) is None, done.stderr
    assert words in done.stderr
    assert "what was saved before stands: python -m poweropd_lite.train --resume run goes on from it" in done.stderr


def test_a_row_of_nan_drops_its_step_and_no_other(tmp_path):
    """The student's second call is that of step 2 (the guard's own, at step 1, is of no gradient)."""
    done = faulted({"phase": "student", "fault": "nan", "call": 3}, tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    dropped = [step["step"] for step in steps if step.get("optim/skipped")]
    assert summary["dropped_steps"] == len(dropped) == 1 and f"step {dropped[0]} dropped: " in done.stdout


def test_what_is_the_card_s_fault():
    assert card_fault(RuntimeError("shape mismatch")) is None and card_fault(ValueError("CUDA error")) is None
    assert card_fault(RuntimeError("CUDA error: out of memory")).startswith("memory ran out")
    assert card_fault(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")).startswith("the card or its driver failed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "was asked for 3 completions and gave 2 completions"),
        (lambda rows: [rows[1], rows[0], rows[2]], "gave completion 1 of another prompt"),
        (lambda rows: [*rows[:2], replace(rows[2], logprobs=rows[2].logprobs[1:])], "completion 3 of 5 tokens and 4 log-probs"),
        (lambda rows: [replace(rows[0], completion_ids=(), logprobs=()), *rows[1:]], "completion 1 of 0 tokens"),
        (
            lambda rows: [rows[0], replace(rows[1], completion_ids=rows[1].completion_ids[:4], logprobs=rows[1].logprobs[:4]), rows[2]],
            "completion 2 of 4 tokens that neither stopped nor is of 5",
        ),
    ],
)  # fmt: skip
def test_an_engine_that_gives_less_is_refused(student_model, prompts, pair, change, words):
    engine = make_engine(student_model, pair)
    asked = (
        [p.ids for p in prompts[:3]],
        Draws(0, TRAINING, 0, (0, 1, 2)),
        Sampling(forbidden=torch.tensor(pair.forbidden)),
    )
    whole = sample_whole(engine, *asked, 5)
    assert [len(r.completion_ids) for r in whole] == [5, 5, 5]
    engine.sample = lambda *_: change(whole)
    with pytest.raises(UserError, match=words):
        sample_whole(engine, *asked, 5)
