"""The plan of an offloaded teacher against what scoring really allocates; the bus, and when it is offered."""

from dataclasses import replace

import pytest
import torch
from test_plan import allocated, memory_of

from poweropd_lite.base.config import load_config
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.plan import plan
from poweropd_lite.plan.cards import CARDS, step_seconds
from poweropd_lite.plan.fit import differences, fit
from poweropd_lite.plan.flops import Lengths
from poweropd_lite.plan.report import words
from poweropd_lite.plan.settings import PlanConfig

CPU = torch.device("cpu")
SIZES = {"batch_size": 2, "token_budget": 240, "dtype": "float32", "gradient_checkpointing": True, "eval_benchmarks": None, "eval_every": 0}  # fmt: skip


def planned(config):
    return memory_of(config, cuda=True)


def test_a_streamed_score_holds_what_is_planned():
    """Eight rollouts of 240 tokens, one at a time: what one needs, and what seven more wait with, beside two of four layers."""
    sizes = {**SIZES, "batch_size": 8, "decode_batch_size": 2, "teacher_bits": 32}
    config, resident = (load_config("bundled", **sizes, teacher_offload=offload) for offload in (True, False))
    teacher = load_teacher("bundled", 32, CPU, torch.float32, offload=True)
    ids = [torch.zeros(1, 240, dtype=torch.long) for _ in range(8)]

    def score():
        hidden = teacher.hiddens(ids)
        for each in ids:
            target_logprobs(next(hidden).flatten(0, 1), teacher.head, each.flatten())

    score()
    measured, found = allocated(score), planned(config)
    held, waiting = found.phases["score"], found.phases["score"]["other micro-batches"]
    assert waiting == 7 * 240 * (4 * (192 + 2 * 48) + 8)  # hidden states; cosines and sines, places
    assert waiting > measured / 3 and held["activations"] + waiting == pytest.approx(measured, rel=0.1)
    whole = planned(resident)
    assert whole.host == 0 and whole.phases["score"]["teacher"] - held["teacher"] == found.host / 2
    assert memory_of(config).phases["score"]["teacher"] == held["teacher"] + found.host  # on a CPU all is one memory


def test_the_bus_is_counted_and_said():
    config = load_config("bundled", **SIZES, teacher_offload=True)
    report, fitting = plan(config, PlanConfig(gpu="rtx4090"), say=print)
    offload, found = report["offload"], planned(config)
    assert fitting == config and offload["bus_bytes"] == offload["host_bytes"] == found.host
    assert offload["seconds"] == pytest.approx(found.host / 12e9)
    said = "bus     0.00 GiB of teacher in the host's memory, brought to the card once a step: 0.0 s at 12 GB/s"
    assert said in words(report, 1)
    slow, card = replace(found, host=5 * 12 * 10**9), CARDS["rtx4090"]
    assert step_seconds(config, slow, card, Lengths(128, 112), 0.7, 0.6)["score"] == 5.0  # hides the computing
    assert plan(load_config("bundled", **SIZES), PlanConfig(gpu="rtx4090"), say=print)[0]["offload"] is None


def test_it_is_offered_where_smaller_parts_are_not_enough():
    """The limit is what the smallest parts, and it, leave: nothing that a result may show is changed."""
    config = load_config("bundled", **SIZES)
    cut = config.model_copy(update={"decode_batch_size": 1})
    limit = planned(cut.model_copy(update={"teacher_offload": True})).needed
    assert limit < planned(cut).needed
    found = fit(config, limit, planned, print)
    assert found is not None and planned(found).needed <= limit
    assert found.teacher_offload and set(differences(config, found)) <= {"decode_batch_size", "teacher_offload"}
