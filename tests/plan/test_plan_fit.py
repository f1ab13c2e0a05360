"""What the plan says of cards: which configs fit, the smallest change that does, what it writes, what it refuses."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from test_plan import PAIRS, TINY, memory_of, run_plan

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.progress import clock
from poweropd_lite.models.shape import read_shape
from poweropd_lite.plan import memory, plan
from poweropd_lite.plan.cards import CARDS, Machine, find_card
from poweropd_lite.plan.fit import config_text, differences, fit
from poweropd_lite.plan.flops import body_flops
from poweropd_lite.plan.memory import GIB
from poweropd_lite.plan.pairs import plan_pairs, table
from poweropd_lite.plan.scoring import plan_scoring
from poweropd_lite.plan.settings import PlanConfig
from poweropd_lite.plan.warn import reached, warnings


def test_appendix_b_to_the_digit_and_the_true_cost():
    done = run_plan("--config", "qwen3-0.6b-4b", "--gpu", "24", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    paper = report["paper_tflops"]
    assert [f"{paper[k]:.1f}" for k in ("teacher", "student", "update", "full_vocabulary")] == [
        "254.8",
        "30.6",
        "346.6",
        "402.7",
    ]
    assert f"{paper['saved']:.1%}" == "13.9%"
    # Query and output projections are heads x 128 wide: 280.4 and 37.3. And every reward multiplies both heads:
    # 2 x 32,768 tokens x 151,936 rows x 2,560 = 25.5 and x 1,024 = 10.2.
    config = load_config("qwen3-0.6b-4b")
    bodies = [
        sum(body_flops(read_shape(getattr(config, role), role, config.trust_remote_code), 32, 1152)) / 1e12
        for role in ("teacher", "student")
    ]
    assert [f"{b:.1f}" for b in bodies] == ["280.4", "37.3"]
    assert report["tflops"]["score"] == pytest.approx(280.4 + 25.5, abs=0.1)
    # LoRA with checkpointing: forward, forward again, gradient of activations (no weight's), and the head twice.
    assert report["tflops"]["update"] == pytest.approx(3 * 37.3 + 2 * 10.2 + 11.2, rel=0.01)


def test_a_named_card_gives_an_estimate_by_its_published_figures():
    report, _ = plan(load_config("qwen3-0.6b-4b"), PlanConfig(gpu="rtx4090"), say=print)
    seconds, card = report["seconds"], CARDS["rtx4090"]
    # Weights and keys and values read once a token, at 60% of 1,008 GB/s, and a millisecond beside it.
    weights = 2 * 596_049_920 + 4 * 20_185_088
    cache = 32 * (128 + 512) * 28 * 2 * 8 * 128 * 2
    decode = 1024 * ((weights + cache) / (0.6 * 1008e9) + 1e-3)
    products = report["tflops"]["rollout"] / (0.7 * card.tflops)
    assert seconds["step"]["rollout"] == pytest.approx(decode + products, rel=1e-6)
    assert seconds["run"] == pytest.approx(1500 * sum(seconds["step"].values()) + 7 * seconds["evaluation"])
    for name in ("RTX 4090", "rtx-4090", "RTX_4090", "4090"):
        assert find_card(name) == Machine("rtx4090", True, card, card.gib, 8.9)
    assert find_card("24GB") == Machine("24 GB", True, None, 22.0) and find_card("a100 80gb").name == "a100-80gb"
    assert find_card("20") == Machine("20 GB", True, None, pytest.approx(18.2))


def test_the_hours_of_all_benchmarks_by_hand():
    """(1,319 + 500 + 40 + 30 + 30 + 272 + 675) x 8 = 22,928 answers; half of 23.5 GiB holds 21 of 1,024 + 4,096 tokens."""
    found = plan_scoring(
        read_shape("Qwen/Qwen3-0.6B-Base", "student"), 20_185_088, 16, CARDS["rtx4090"], 0.4, 0.6, True
    )
    line = 28 * 2 * 8 * 128 * 2  # bytes of a token's keys and values
    assert (found.answers, found.lines) == (22_928, 21) == (22_928, int(23.5 * GIB / 2 // (5120 * line)))
    for tokens, seen, seconds in ((1300, 1428, found.seconds), (4096, 2176, found.longest_seconds)):
        read = 2 * 596_049_920 + 4 * 20_185_088 + 21 * seen * line + 4 * 4 * 21 * 151_936
        decode = (22_928 * tokens / 21 + 4096 - tokens) * (read / (0.6 * 1008e9) + 1e-3)
        # 440 M weights in the layers and 20 of the adapter for every token, 156 in the head for those drawn, attention.
        products = 22_928 * (2 * 0.46e9 * (128 + tokens) + 2 * 155.6e6 * tokens + 2 * 28 * 2048 * (128 + tokens) ** 2)
        assert seconds == pytest.approx(decode + products / (0.4 * 165e12), rel=0.002)


def test_vllm_asleep_and_awake():
    """With vLLM a copy of the base and a cache for 32 completions are there in rollouts; asleep it keeps 1 GiB."""
    config = load_config("qwen3-0.6b-4b", engine="vllm")
    found = memory_of(config, torch.bfloat16, cuda=True, engine="vllm")
    phases = found.phases
    cache = 32 * (2048 + 128) * 28 * 2 * 8 * 128 * 2
    assert phases["rollout"]["keys and values"] == cache
    assert phases["rollout"]["vLLM"] == 2 * 596_049_920 + 2 * GIB - GIB
    assert phases["update"]["engine"] == GIB and "keys and values" not in phases["update"]
    shared = memory_of(config, torch.bfloat16, cuda=True, engine="vllm", shared=True)
    assert shared.phases["update"]["engine"] == cache + 2 * GIB


@pytest.mark.parametrize("name", PAIRS)
def test_all_four_pairs_fit_24_gb_as_lora(name):
    report, fitting = plan(load_config(name), PlanConfig(gpu="24"), say=print)
    assert report["fits"] and report["changes"] == {} and fitting == load_config(name)
    assert report["needed_bytes"] < 22.0 * GIB  # of an L4 or A10, the smallest cards sold as 24 GB


def test_a_card_without_a_config_is_planned_for_the_four_pairs(tmp_path):
    """24 GB hold each as it is, so the largest is taken, with every flag that was typed."""
    done = run_plan("--gpu", "24", "--alpha", "3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [pair["config"] for pair in report["pairs"]] == PAIRS and report["usable_bytes"] == 22 * GIB
    for pair in report["pairs"]:
        peak = memory_of(load_config(pair["config"]), torch.bfloat16, cuda=True).peak
        assert pair["plan"]["peak_bytes"] == pair["changed"]["peak_bytes"] == peak and pair["changes"] == {}
    assert report["recommended"] == "qwen3-1.7b-8b"
    assert report["train"] == "python -m poweropd_lite.train --config qwen3-1.7b-8b --alpha 3"
    assert report["write"] == report["train"].replace(".train", ".plan") + " --gpu 24 --output mine.yaml"

    done = run_plan("--gpu", "24", "--alpha", "3", "--output", "mine.yaml", cwd=tmp_path)
    assert "qwen3-0.6b-4b       14.0  as it is      14.0\n" in done.stdout
    assert "take    qwen3-1.7b-8b: the largest that fits as it is\n" in done.stdout
    assert done.stdout.endswith("wrote   mine.yaml: python -m poweropd_lite.train --config mine.yaml\n")
    assert load_config(tmp_path / "mine.yaml") == load_config("qwen3-1.7b-8b", alpha=3)


def test_a_card_that_holds_no_pair_as_it_is():
    """11.5 of 12 GB: each pair with fewer completions at once, and the smallest, which is cut least, is taken."""
    names = PAIRS[:3]
    report, fitting = plan_pairs({}, PlanConfig(gpu="12"), print, names)
    for name, lines, pair in zip(names, (16, 8, 8), report["pairs"], strict=True):
        config = load_config(name)
        before, after = (
            memory_of(c, torch.bfloat16, cuda=True)
            for c in (config, config.model_copy(update={"decode_batch_size": lines}))
        )
        assert after.needed < 11.5 * GIB < before.needed
        assert pair["plan"]["peak_bytes"] == before.peak and pair["changed"]["peak_bytes"] == after.peak
        assert pair["changes"] == {"decode_batch_size": [None, lines]}
        then = pair["plan"]["then"]
        assert then["needed_bytes"] == pair["changed"]["needed_bytes"]
        if seconds := pair["changed"]["seconds"]:
            assert (then["step"], then["run"]) == (seconds["step"], seconds["run"])
        assert f"with --decode-batch-size {lines}" in table(report)
    assert report["recommended"] == "qwen3-0.6b-4b" and fitting == load_config("qwen3-0.6b-4b", decode_batch_size=16)
    assert report["train"] == "python -m poweropd_lite.train --config qwen3-0.6b-4b --decode-batch-size 16"
    assert "take    qwen3-0.6b-4b: none fits as it is, and this one is cut least" in table(report)
    assert "how long it takes is not known of it: --gpu with a card's name, such as rtx3060, says" in table(report)


def test_a_card_that_holds_none_of_them():
    done = run_plan("--gpu", "2")
    assert done.returncode == 1 and done.stdout.endswith("none of them fits, whatever is changed; take a larger card\n")
    report, fitting = plan_pairs({}, PlanConfig(gpu="2"), print, PAIRS[:1])
    assert fitting is None and report["recommended"] is report["train"] is report["pairs"][0]["changes"] is None


def test_without_a_card_it_is_the_bundled_pair():
    for flags in ([], ["--gpu", "cpu"]):
        done = run_plan(*flags, "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["student"] == "bundled-student"


def test_a_t4_is_warned_of_float16_and_of_the_end_of_a_session(monkeypatch):
    """The session's end by adding up steps and evaluations, one after the other."""
    monkeypatch.setattr(memory, "LOGIT_ELEMENTS", 512 * 8)  # a card that runs our kernels would need a larger chunk
    report, _ = plan(load_config("bundled", steps=900_000), PlanConfig(gpu="t4"), say=print)
    assert "kernels' chunk" not in report["phases"]["update"]
    assert report["dtype"] == "float16"
    dtype, session = report["warnings"]
    assert dtype["level"] == "warning" and dtype["check"] == "compute dtype"
    assert "float16 with a loss scale, which is untested with Qwen3: t4 has no bfloat16" in dtype["found"]
    seconds = report["seconds"]
    step, scoring = sum(seconds["step"].values()), seconds["evaluation"]
    time, done = scoring, 0
    while time + step <= 12 * 3600:
        time, done = time + step, done + 1
        time += scoring if done % 25 == 0 else 0
    assert session["check"] == "session" and session["evidence"]["hours"] == 12 and 0 < done < 900_000
    assert abs(session["evidence"]["step"] - done) <= 1  # the sum's rounding
    assert f"ends at step {session['evidence']['step']:,} of 900,000 at best" in session["found"]
    assert "--resume" in session["mend"] and "every 50 steps" in session["mend"]
    done = run_plan("--config", "bundled", "--gpu", "t4")
    assert done.returncode == 0 and "\nwarning compute dtype: this run computes" in done.stdout
    assert "warning session" not in done.stdout  # 100 steps
    report, _ = plan(
        load_config("qwen3-1.7b-4b"), PlanConfig(gpu="t4"), say=print
    )  # fits with a change, and is slower then
    assert report["then"]["run"] > report["seconds"]["run"]
    assert f"takes about {clock(report['then']['run'])} on t4" in report["warnings"][1]["found"]


@pytest.mark.parametrize(
    ("settings", "evaluation", "step"),
    [
        # 43,200 - 300 = 42,900 s: three times 250 x 42 + 300 = 10,800, and 10,500 are 250 steps more.
        ({"eval_benchmarks": "math500", "eval_every": 250}, 300.0, 1000),
        ({"eval_benchmarks": "math500", "eval_every": 0}, 300.0, 1021),  # 42,900 / 42
        ({}, 0.0, 1028),  # 43,200 / 42
        ({"steps": 900}, 0.0, 900),
    ],
)
def test_the_step_of_a_session_s_end_by_hand(settings, evaluation, step):
    seconds = {"step": {"rollout": 40.0, "update": 2.0}, "evaluation": evaluation}
    assert reached(load_config(**{"student": "a", "teacher": "b", **settings}), seconds, 12 * 3600) == step


def test_a_size_does_not_say_bfloat16_and_a_name_does():
    def warned(gpu, **settings):
        return [w["check"] for w in plan(load_config("bundled", **settings), PlanConfig(gpu=gpu), print)[0]["warnings"]]

    assert warned("16") == ["compute dtype"] and warned("16", dtype="float32") == [] and warned("rtx4090") == []
    assert warned("cpu") == []


def test_the_change_that_fits_is_needed_and_enough(tmp_path):
    done = run_plan("--config", "qwen3-0.6b-4b", "--gpu", "8", "--output", "small.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not on 8 GB" in done.stdout and "change  --decode-batch-size" in done.stdout
    text = (tmp_path / "small.yaml").read_text()
    assert text.startswith("# Qwen/Qwen3-0.6B-Base <- Qwen/Qwen3-4B, LoRA: fits 8 GB")
    small = load_config(tmp_path / "small.yaml")
    limit = 0.91 * 8 * GIB

    def needed(config):
        return memory_of(config, torch.bfloat16, cuda=True).needed

    assert needed(small) <= limit
    before = load_config("qwen3-0.6b-4b")
    for name in yaml.safe_load(text):
        if getattr(small, name) != getattr(before, name):  # each change alone put back no longer fits
            assert needed(small.model_copy(update={name: getattr(before, name)})) > limit, name
    again = run_plan("--config", "qwen3-0.6b-4b", "--gpu", "8", "--output", "small.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "never writes over a file" in again.stderr


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"decode_batch_size": 64}, {"decode_batch_size": 16}),
        ({"batch_size": 16, "decode_batch_size": 8, "token_budget": 262_144}, {"token_budget": 16 * 240 // 2}),
        ({"eval_max_new_tokens": 114}, {"decode_batch_size": 16}),
        ({"max_new_tokens": 896, "eval_max_new_tokens": 128, "decode_batch_size": 16}, {"decode_batch_size": 8}),
    ],
)
def test_what_changes_no_result_is_enough(settings, changes):
    """Settings above what is really used, two phases alike, few completions at once: none needs a last resort.

    The limit is what the changes named here leave, to the byte.
    """
    config = load_config("bundled", eval_batch_size=32, gradient_checkpointing=True, **settings)

    def memory(of):
        return memory_of(of, torch.bfloat16, cuda=True)

    fitting = fit(config, memory(config.model_copy(update=changes)).needed, memory, print)
    changed = {name: after for name, (_, after) in differences(config, fitting).items()}
    assert set(changed) <= {"decode_batch_size", "eval_batch_size", "token_budget"}
    assert changed | changes == changed, changed


def test_vllm_that_does_not_fit_gives_way_to_the_loop():
    """2 GiB of vLLM's own beside a pair of a few MiB: nothing but another engine makes it fit 1.5 GiB."""
    config = load_config("bundled", engine="vllm")

    def memory(of):
        return memory_of(of, torch.bfloat16, cuda=True, engine="vllm" if of.engine == "vllm" else "loop")

    assert memory(config).needed > 2 * GIB
    found = fit(config, round(1.5 * GIB), memory, print)
    assert found == config.model_copy(update={"engine": "loop"})


def test_what_train_refuses_is_not_planned():
    for gpu, settings, words in [
        ("cpu", {"optimizer": "adamw8bit"}, "adamw8bit needs a CUDA card, not this machine's CPU; type --optimizer"),
        ("cpu", {"teacher_bits": 8}, "needs a CUDA card, not this machine's CPU; type --teacher-bits 4, 16 or 32"),
        ("cpu", {"dtype": "float16"}, "float16 needs a CUDA card, not this machine's CPU; type --dtype float32"),
        ("t4", {"dtype": "bfloat16"}, "t4 has no bfloat16; type --dtype float16"),
        ("t4", {"full_finetune": True}, "t4 has no bfloat16, and full_finetune in float16 loses small updates; type"),
    ]:
        with pytest.raises(UserError, match=words):
            plan(load_config("qwen3-0.6b-4b", **settings), PlanConfig(gpu=gpu), say=print)
    config = load_config("bundled", full_finetune=True)  # and a search does not end in what is refused
    report, fitting = plan(config, PlanConfig(gpu="cpu"), say=print)
    assert fitting is None or fitting.optimizer == "adamw"


@pytest.fixture
def wide(tmp_path):
    """Configs of two models of 1 billion weights: one with 32 experts, one whose only expert is as wide as those."""
    from transformers import AutoConfig

    same = {"vocab_size": 96, "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16}
    widths = {
        "qwen3_moe": {"moe_intermediate_size": 2560, "num_experts": 32, "num_experts_per_tok": 2},
        "qwen3": {"intermediate_size": 32 * 2560},
    }
    for kind, width in widths.items():
        AutoConfig.for_model(kind, **same, num_key_value_heads=2, **width).save_pretrained(tmp_path / kind)
    return {kind: str(tmp_path / kind) for kind in widths}


@pytest.mark.parametrize(("kind", "bits"), [("qwen3", [16, 4]), ("qwen3_moe", None)])
def test_4_bits_are_offered_to_a_student_whose_experts_they_reach(kind, bits, wide):
    """4 x 32 x 3 x 1,024 x 2,560 weights in 16 bits are 1.9 GiB, and 2 GB are 1.8: in 4 bits they would fit."""
    sizes = {"batch_size": 1, "max_prompt_tokens": 64, "max_new_tokens": 64, "lora_rank": 8, "eval_benchmarks": None}
    sizes |= {"gradient_checkpointing": True, "token_budget": 128}
    report, fitting = plan(load_config(student=wide[kind], teacher="bundled", **sizes), PlanConfig(gpu="2"), say=print)
    assert report["phases"]["update"]["student"] > 1.87 * GIB > report["usable_bytes"]
    assert (None if fitting is None else report["changes"]["student_bits"]) == bits


@pytest.mark.parametrize(
    ("role", "bits", "words"),
    [("student", 4, "student_bits 4 .* type --student-bits 16"), ("teacher", 8, "8 .* type --teacher-bits 4 or 16")],
)
def test_bits_that_leave_experts_as_they_are_are_not_planned(role, bits, words, wide):
    pair = {"student": "bundled", "teacher": "bundled", "engine": "loop", role: wide["qwen3_moe"], f"{role}_bits": bits}
    with pytest.raises(UserError, match=f"qwen3_moe has 8 fused parameters of experts, 1.9 GiB in 16 bits, .*{words}"):
        plan(load_config(**pair), PlanConfig(gpu="24"), say=print)


def test_no_card_is_named_and_none_is_here(tmp_path):
    """What fits is then not known: the report says which sizes hold it, and a written config what it needs."""
    done = run_plan("--config", "qwen3-0.6b-4b", "--json", "--output", "any.yaml", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["fits"] is None and report["usable_bytes"] is None
    needed = f"needs {report['needed_bytes'] / GIB:.1f} GiB by plan's arithmetic"
    assert needed in (tmp_path / "any.yaml").read_text().splitlines()[0]
    (tmp_path / "file").write_text("")
    for place, words in (("file/x.yaml", "file is a file"), ("any.yaml", "never writes over a file")):
        done = run_plan("--config", "qwen3-0.6b-4b", "--output", place, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_models_of_ones_own_are_planned_for_this_machine():
    own = [word for role in ("student", "teacher") for word in (f"--{role}", str(TINY / role))]
    done = run_plan(*own, "--json")
    assert json.loads(done.stdout)["machine"] == "this machine's CPU"
    assert "--gpu 24, or a card's name, plans a card" in done.stderr


def test_nothing_makes_an_8b_teacher_fit_4_gb():
    config = load_config("qwen3-1.7b-8b")
    assert fit(config, 4 * GIB, lambda c: memory_of(c, torch.bfloat16, cuda=True), print) is None


def test_a_written_config_is_the_differences():
    config = load_config("bundled", alpha=3)
    values = yaml.safe_load(config_text(config, "x"))
    assert values["alpha"] == 3 and values["student"] == "bundled" and "lora_targets" not in values
    assert load_config(**values) == config


def test_exit_codes_and_messages():
    small = ["--config", "qwen3-0.6b-4b"]
    assert run_plan(*small, "--gpu", "8").returncode == 1
    for flags, message in [
        (["--gpu", "rtx9999"], "neither a size in GB, such as 24, nor one of rtx4060"),
        (["--gpu", "0"], "neither a size"),
        (["--gpu", "7777"], "neither a size"),
        (["--gpuu", "24"], "did you mean '--gpu'?"),
        (["--compute-share", "2"], "compute_share: found '2'"),
        (["--student", "nowhere/at-all", "--teacher", "bundled"], "no model config for the student"),
    ]:
        done = run_plan(*flags)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, flags


def test_help_is_quick_and_imports_no_torch():
    code = """
import contextlib, sys
from poweropd_lite.plan.__main__ import main
with contextlib.suppress(SystemExit):
    main(["--help"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--gpu" in done.stdout and "--token-budget" in done.stdout, done.stderr


@pytest.mark.parametrize(("card", "sessions"), [("t4", 1), ("l4", 1), ("rtx3060", 0), ("rtx4090", 0)])
def test_a_session_ends_on_cards_that_colab_has(card, sessions):
    seconds = {"step": {"rollout": 60.0}, "evaluation": 0.0, "run": 90_000.0}
    found = warnings(load_config("qwen3-0.6b-4b"), find_card(card), seconds)
    assert sum(finding.check == "session" for finding in found) == sessions
