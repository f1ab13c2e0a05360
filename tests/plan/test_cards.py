"""The cards by their names and figures, and the seconds of a step on them, against those that an H100 took."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.engines.choose import answers_at_once
from poweropd_lite.models.shape import read_shape
from poweropd_lite.plan.cards import CARDS, Machine, find_card, known_card, step_seconds
from poweropd_lite.plan.flops import Lengths, step_flops
from poweropd_lite.plan.memory import GIB, plan_memory
from poweropd_lite.plan.scoring import plan_scoring
from poweropd_lite.plan.settings import PlanConfig
from poweropd_lite.plan.trace import Traced, traces_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
H100 = BENCHMARKS / "gpu" / "results" / "h100-kernels"


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("NVIDIA A10G", 22.0, None),
        ("NVIDIA A10", 22.0, "a10"),
        ("NVIDIA GeForce RTX 4070 Ti", 11.6, None),
        ("NVIDIA GeForce RTX 3090 Ti", 23.5, None),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA RTX 6000 Ada Generation", 44.4, "rtx6000-ada"),
        ("NVIDIA RTX 5000 Ada Generation", 31.3, None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 94.9, "rtxpro6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 94.9, None),
        ("NVIDIA B200", 178.3, "b200"),
        ("NVIDIA GB200", 184.0, None),
        ("Tesla T4", 14.6, "t4"),
        ("Tesla P100-PCIE-16GB", 15.9, "p100"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100"),
        ("NVIDIA GeForce RTX 5070", 11.5, "rtx5070"),
        ("NVIDIA GeForce RTX 5060 Ti", 7.6, None),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 7.6, None),
        ("NVIDIA GeForce RTX 3060 Ti", 7.8, None),
        ("AMD Instinct MI300X", 192.0, None),
    ],
)
def test_a_card_is_known_by_what_its_driver_says(name, gib, card):
    assert known_card(name, gib) == (CARDS[card] if card else None)


@pytest.mark.parametrize(
    ("name", "cores", "ghz", "bits", "gbps"),
    [
        ("rtx3060", 3584, 1.777, 192, 15), ("rtx3090", 10496, 1.695, 384, 19.5), ("rtx4060", 3072, 2.46, 128, 17),
        ("rtx4070", 5888, 2.475, 192, 21), ("rtx4080", 9728, 2.505, 256, 22.4), ("rtx4090", 16384, 2.52, 384, 21),
        ("rtx5060", 3840, 2.497, 128, 28), ("rtx5070", 6144, 2.512, 192, 28), ("rtx5080", 10752, 2.617, 256, 30),
        ("rtx5090", 21760, 2.407, 512, 28),
    ],
)  # fmt: skip
def test_figures_of_a_geforce_card_are_those_of_its_parts(name, cores, ghz, bits, gbps):
    """Products in half precision with float32 sums at twice the float32 rate, two operations a core and cycle; a bus's
    bytes times the rate of a pin.
    """
    assert CARDS[name].tflops == pytest.approx(2 * 2 * cores * ghz / 1e3, rel=0.005)
    assert CARDS[name].float32 == pytest.approx(2 * cores * ghz / 1e3, rel=0.005)
    assert CARDS[name].bandwidth == pytest.approx(bits / 8 * gbps, rel=0.001)


def test_cards_without_bfloat16_are_those_before_ampere():
    assert (CARDS["t4"].tflops, CARDS["t4"].bandwidth, CARDS["t4"].capability) == (65, 320, 7.5)
    assert [name for name in CARDS if not find_card(name).bfloat16] == ["t4", "p100", "v100"]
    assert not Machine("NVIDIA GeForce RTX 2080", True, None, 7.8, 7.5).bfloat16  # here, and in no list
    assert find_card("RTX A6000").name == "a6000" and find_card("24").capability is None


@pytest.mark.parametrize(
    ("asked", "name", "gib", "capability"),
    [
        ("T4", "t4", 14.6, 7.5), ("L4", "l4", 22.0, 8.9), ("4090", "rtx4090", 23.5, 8.9), ("a100", "a100-40gb", 39.4, 8.0),
        ("A100 80GB", "a100-80gb", 79.1, 8.0), ("RTX 6000 Ada", "rtx6000-ada", 44.4, 8.9), ("H100", "h100", 79.1, 9.0),
        ("G4", "rtxpro6000", 94.9, 12.0), ("RTX PRO 6000", "rtxpro6000", 94.9, 12.0), ("b200", "b200", 178.3, 10.0),
    ],
)  # fmt: skip
def test_the_cards_people_have_by_the_names_they_use(asked, name, gib, capability):
    assert find_card(asked) == Machine(name, True, CARDS[name], gib, capability)


@pytest.fixture(scope="module")
def qwen():
    """Qwen3-0.6B <- 4B with an adapter of rank 32, as far as its time is concerned."""
    shapes = read_shape("Qwen/Qwen3-0.6B-Base", "student"), read_shape("Qwen/Qwen3-4B", "teacher")
    return SimpleNamespace(student=Traced(shapes[0], 20_185_088, 20_185_088, 0), teacher=shapes[1], host=0)


@pytest.mark.parametrize(("part", "recomputed"), [("lora-0.6b-4b-b32", True), ("lora-0.6b-4b-b32-kept", False)])
def test_a_step_on_an_h100_takes_what_was_measured(part, recomputed, qwen):
    """Each phase and the step within a fifth; the optimizer's 0.08 s with activations kept are the allocator's."""
    measured = json.loads((H100 / f"{part}.json").read_text())
    settings = {"gradient_checkpointing": recomputed, "token_budget": 36_864, "teacher_token_budget": 36_864}
    config, shares = (
        load_config("qwen3-0.6b-4b", **settings),
        (PlanConfig().compute_share, PlanConfig().bandwidth_share),
    )
    planned = step_seconds(config, qwen, CARDS["h100"], Lengths(128, measured["new_tokens"]), *shares)
    phases = measured["seconds_by_phase"]
    for ours, theirs in [("rollout", "rollout"), ("score", "teacher"), ("update", "student")]:
        assert planned[ours] == pytest.approx(phases[theirs], rel=0.2), ours
    assert not recomputed or planned["optimizer"] == pytest.approx(phases["optimizer"], rel=0.2)
    assert sum(planned.values()) == pytest.approx(measured["seconds"], rel=0.2)


@pytest.mark.parametrize(("part", "recomputed"), [("lora-0.6b-4b-b32", True), ("lora-0.6b-4b-b32-kept", False)])
def test_an_update_on_an_h100_holds_what_was_measured(part, recomputed):
    """8.64 GiB with checkpointing, and 49.12 of compiled layers whose activations are kept (65.3 of layers as written)."""
    measured = json.loads((H100 / f"{part}.json").read_text())["peak_gib_by_phase"]["student"]
    config = load_config(
        "qwen3-0.6b-4b", gradient_checkpointing=recomputed, batch_size=32, max_prompt_tokens=128, max_new_tokens=1024,
        token_budget=36_864, teacher_token_budget=36_864, eval_every=0,
    )  # fmt: skip
    plan = plan_memory(config, traces_of(config, torch.bfloat16), True)
    assert plan.total("update") / GIB == pytest.approx(measured, rel=0.03)


def test_a_card_without_our_kernels_waits_for_more_of_them(qwen):
    """On a T4 10 passes over the update's float32 logits in place of 4, 3 for the score's 2, and 4 ms a token in place of 1."""
    config, t4, newer = load_config("qwen3-0.6b-4b"), CARDS["t4"], replace(CARDS["t4"], capability=8.0)
    with_them, without = (step_seconds(config, qwen, card, Lengths(128, 1024), 0.7, 0.6) for card in (newer, t4))
    once = 4 * 32 * 1024 * 151_936 / (0.6 * 320e9)
    for phase, more in [("update", 6 * once), ("score", once), ("rollout", 1024 * 3e-3), ("optimizer", 0.0)]:
        assert without[phase] - with_them[phase] == pytest.approx(more), phase


def test_in_float32_a_t4_multiplies_an_eighth_as_fast_and_moves_twice_the_bytes(qwen):
    """8.1 TFLOP/s for 65. Half of the share of them takes as long again; of twice the bandwidth the rest takes half."""
    halves, wholes = (load_config("qwen3-0.6b-4b", dtype=dtype) for dtype in ("auto", "float32"))
    lengths, t4 = Lengths(128, 1024), CARDS["t4"]
    flops = step_flops(wholes, qwen.student, qwen.teacher, lengths)["score"]
    for config, rate in ((halves, 65), (wholes, 8.1)):
        slow, fast, wide = (step_seconds(config, qwen, t4, lengths, *s) for s in ((0.35, 0.6), (0.7, 0.6), (0.7, 0.3)))
        assert slow["score"] - fast["score"] == pytest.approx(flops / (rate * 1e12 * 0.7))
        moved = wide["score"] - fast["score"]  # at 192 GB/s: the teacher's matrices, activations and float32 logits
        linear, size = qwen.teacher.linear_elements, 2 if rate == 65 else 4
        activations = 1.6 * size * 32 * 1152 * qwen.teacher.linear_widths
        batches = -(-32 * 1152 // config.teacher_tokens_at_once)
        by_hand = batches * (0.5 + 2 * size) * linear + activations + 3 * 4 * 32 * 1024 * 151_936
        assert moved == pytest.approx(by_hand / (0.6 * 320e9)), rate


def test_a_teacher_is_timed_in_what_it_computes_in(qwen):
    """Whole in 16 bits it scores in bfloat16 beside a student in float32; in 32 bits in float32 beside one in bfloat16."""
    h100, shares = CARDS["h100"], ((0.35, 0.6), (0.7, 0.6))
    for settings, rate in (({"teacher_bits": 16, "dtype": "float32"}, 989), ({"teacher_bits": 32}, 67)):
        config = load_config("qwen3-0.6b-4b", **settings)
        slow, fast = (step_seconds(config, qwen, h100, Lengths(128, 1024), *share)["score"] for share in shares)
        flops = step_flops(config, qwen.student, qwen.teacher, Lengths(128, 1024))["score"]
        assert slow - fast == pytest.approx(flops / (rate * 1e12 * 0.7)), rate


def test_the_hours_of_a_reproduction_by_hand(qwen, monkeypatch):
    """5.1 h of training; MATH-500 four times is 2,000 of the seven benchmarks' 22,928 answers, and the same last ones."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reproduction import PRICES, hours, prices

    assert prices(PRICES).keys() == {"l4", "rtx4090", "l40s", "rtx6000-ada", "a100-80gb", "h100"}
    assert prices("l4=0.7, h100=2.5") == {"l4": 0.7, "h100": 2.5}
    with pytest.raises(SystemExit, match="--prices: found 'l4'"):
        prices("l4")
    whole = {"seconds": 36_000.0, "longest_seconds": 144_000.0}
    report = {"trains": "LoRA, rank 32", "trained": 20_185_088, "seconds": {"run": 18_360.0, "benchmarks": whole}}
    found = hours(report, qwen.student.shape, CARDS["l40s"], PlanConfig())
    assert (found.training, found.scoring, found.endless) == (5.1, 10.0, 40.0)
    shares = PlanConfig().compute_share, PlanConfig().bandwidth_share
    all_seven = plan_scoring(qwen.student.shape, 20_185_088, 16, CARDS["l40s"], *shares, True)
    lines = all_seven.lines
    share = (2_000 * 1300 / lines + 4096 - 1300) / (22_928 * 1300 / lines + 4096 - 1300)
    assert found.cheap == pytest.approx(share * all_seven.seconds / 3600, rel=0.02)


def test_an_evaluation_s_keys_and_values_leave_room_for_the_weights():
    """22 GiB: 8B in 16 bits has 15.26 and 36 layers of 8 heads of 128, 147,456 bytes a token; 0.6B takes half of the card."""
    large, small = (read_shape(f"Qwen/Qwen3-{size}", "student") for size in ("8B", "0.6B-Base"))
    card = 22 * 2**30
    assert large.weight_bytes(16) == pytest.approx(15.26 * 2**30, rel=1e-3)
    room = 0.8 * (card - large.weight_bytes(16))
    assert answers_at_once("loop", "cuda", large, 16, 4096, 2, card) == int(room // (4096 * 147_456)) == 9
    assert answers_at_once("loop", "cuda", small, 16, 4096, 2, card) == card // 2 // (4096 * 114_688) == 25
    assert answers_at_once("loop", "cuda", large, 16, 4096, 2, 12 * 2**30) == 1  # not even the weights fit
