"""The plan of a data-parallel run by hand-computed numbers: a card's share of a step, the gradient's bytes and seconds."""

import json

import pytest
from test_plan import run_plan

from poweropd_lite.base.config import load_config
from poweropd_lite.plan import plan
from poweropd_lite.plan.cards import CARDS
from poweropd_lite.plan.pairs import plan_pairs, table
from poweropd_lite.plan.parallel import link, sent_bytes
from poweropd_lite.plan.report import words
from poweropd_lite.plan.settings import PlanConfig

TRAINED = 116_736  # of the bundled student's adapter


def planned(gpu, gpus=1, **settings):
    return plan(load_config("bundled", **settings), PlanConfig(gpu=gpu, gpus=gpus), lambda _: None)


def test_what_a_ring_sends_of_a_gradient():
    """Four bytes a weight; a card sends each of the N parts but one twice: (N - 1) / N to sum it, and as much to hand it on."""
    assert sent_bytes(20_185_088, 2) == 80_740_352  # 4 x 20,185,088
    assert sent_bytes(20_185_088, 8) == 141_295_616  # 1.75 times that
    assert sent_bytes(TRAINED, 4) == 700_416  # 1.5 x 466,944
    assert sent_bytes(TRAINED, 1) == 0


@pytest.mark.parametrize(
    ("gpu", "name", "rate"),
    [("h100", "NVLink", 270e9), ("a100-40gb", "NVLink", 180e9), ("v100", "NVLink", 90e9), ("b200", "NVLink", 540e9),
     ("h100-pcie", "PCIe", 12e9), ("rtx4090", "PCIe", 12e9), ("l4", "PCIe", 12e9)],
)  # fmt: skip
def test_the_rate_between_cards(gpu, name, rate):
    """0.6 of NVLink's 450, 300, 150 and 900 GB/s one way; what is assumed of PCIe 3.0 x16 for all others."""
    assert link(CARDS[gpu], 0.6) == (name, pytest.approx(rate))


@pytest.mark.parametrize(("gpu", "seconds"), [("h100", 700_416 / 270e9), ("rtx4090", 700_416 / 12e9)])
def test_four_cards_plan_a_quarter_of_the_batch_and_the_sum(gpu, seconds):
    """All but the sum is the plan of eight prompts on one card; keys and values are of three layers, 2 x 2 heads of 32."""
    whole, fitting = planned(gpu, 4)
    alone, _ = planned(gpu, batch_size=8)
    assert whole["phases"] == alone["phases"] and whole["needed_bytes"] == alone["needed_bytes"]
    assert whole["phases"]["rollout"]["keys and values"] == 3 * 2 * 2 * 32 * 8 * 240 * 2
    assert whole["phases"]["rollout"]["optimizer"] == 8 * TRAINED  # each card holds the state of all weights
    assert whole["gpus"] | {"link": None, "link_rate": None} == {
        "cards": 4, "batch": 32, "prompts": 8, "sent_bytes": 700_416, "link": None, "link_rate": None, "seconds": pytest.approx(seconds)
    }  # fmt: skip
    step = whole["seconds"]["step"]
    assert step == {**alone["seconds"]["step"], "all-reduce": pytest.approx(seconds)}
    assert whole["seconds"]["run"] - alone["seconds"]["run"] == pytest.approx(100 * seconds)
    assert fitting is not None and fitting.batch_size == 32  # the config is the run's, not a card's
    assert alone["gpus"] is None and "all-reduce" not in alone["seconds"]["step"]


def test_a_batch_that_does_not_part_evenly_is_planned_for_the_fullest_card():
    report, _ = planned("l4", 5)
    assert report["gpus"]["prompts"] == 7  # 7 + 7 + 6 + 6 + 6
    assert report["phases"] == planned("l4", batch_size=7)[0]["phases"]


def test_what_is_said():
    text = words(planned("rtx4090", 4)[0], 100)
    assert text.splitlines()[1] == "all below is of one of 4 cards, which has 8 of a step's 32 prompts at most"
    line = "gpus    each sends 0.7 MiB of gradient a step: 0.0584 ms at 12 GB/s (PCIe; assumed, PCIe 3.0 x16; not measured)"
    assert line in text.splitlines()
    assert "gpus    each sends 0.7 MiB of gradient a step" in words(planned("24", 4)[0], 100).splitlines()  # no time
    alone = words(planned("rtx4090")[0], 100)
    assert "gpus" not in alone and "cards" not in alone


def test_a_config_that_fits_keeps_the_whole_batch_and_is_launched_on_all_cards(tmp_path):
    flags = ["--config", "bundled", "--full-finetune", "--gpu", "1", "--gpus", "2", "--eval-batch-size", "512"]
    done = run_plan(*flags, "--output", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(
        "wrote   mine.yaml: accelerate launch --multi_gpu --num_processes 2 -m poweropd_lite.train --config mine.yaml"
    )
    found = load_config(tmp_path / "mine.yaml")
    assert found.batch_size == 32 and found.eval_batch_size < 512  # what was cut, and what was not
    assert "on each of 2 cards by plan's arithmetic" in (tmp_path / "mine.yaml").read_text().splitlines()[0]


def test_a_table_of_pairs_is_of_one_card_and_says_how_to_launch_on_all():
    report, fitting = plan_pairs({}, PlanConfig(gpu="24", gpus=2), lambda _: None, ["bundled"])
    found = report["pairs"][0]["plan"]
    assert found["phases"]["rollout"]["keys and values"] == 3 * 2 * 2 * 32 * 16 * 240 * 2
    assert found["gpus"] == report["gpus"] and report["gpus"]["sent_bytes"] == 466_944  # of two, the gradient once
    assert fitting is not None and fitting.batch_size == 32
    lines = table(report).splitlines()
    assert lines[1] == "all below is of one of 2 cards, which has 16 of a step's 32 prompts at most"
    assert "next    accelerate launch --multi_gpu --num_processes 2 -m poweropd_lite.train --config bundled" in lines
    assert report["write"] == ("python -m poweropd_lite.plan --config bundled --gpu 24 --gpus 2 --output mine.yaml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "24", "--gpus", "0"], "gpus: found '0', but it should be greater than or equal to 1"),
        (
            ["--gpu", "24", "--gpus", "33"],
            "gpus: found 33, but a step has 32 prompts (batch_size), and each card wants one; type --gpus 32, or "
            "--batch-size 33 or more",
        ),
        (
            ["--gpu", "cpu", "--gpus", "2"],
            "gpus: found 2, but what is planned for is this machine's CPU, no card; type",
        ),
    ],
)
def test_what_can_not_be_shared_is_refused(flags, said):
    done = run_plan("--config", "bundled", *flags)
    assert done.returncode == 2 and said in done.stderr


def test_json_has_the_share(tmp_path):
    found = json.loads(run_plan("--config", "bundled", "--gpu", "h100", "--gpus", "32", "--json").stdout)
    assert (found["gpus"]["prompts"], found["gpus"]["sent_bytes"]) == (1, 2 * 31 * 466_944 // 32)
