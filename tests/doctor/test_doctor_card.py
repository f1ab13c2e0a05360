"""The doctor is asked about a card that is not here: what its name says, and what a size alone does not."""

import json

from conftest import run_here

from poweropd_lite.base.config import load_config
from poweropd_lite.doctor.__main__ import main
from poweropd_lite.doctor.card import check_card
from poweropd_lite.plan.cards import find_card


def of_card(name, **settings):
    """What is found of a card that is not here, by check: the level, and what was found with what mends it."""
    found = check_card(load_config("bundled", **settings), find_card(name), "PLAN")
    assert all(f.found.startswith(f"for {find_card(name).name}, not this machine: ") for f in found)
    return {f.check: (f.level, str(f)) for f in found}


def test_a_card_that_is_not_here():
    """A T4 has compute capability 7.5: all but bfloat16."""
    done = run_here(main, "--config", "bundled", "--gpu", "t4", "--rows", "5", "--alpha", "3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    by_check = {f["check"]: f for f in report["findings"]}
    assert report["counts"] == {"ok": 21, "warning": 1, "refusal": 0}
    assert by_check["compute dtype"]["level"] == "warning"
    assert by_check["compute dtype"]["found"].startswith("for t4, not this machine: this run computes in float16")
    assert by_check["compute dtype"]["evidence"] == {"gpu": "t4", "capability": 7.5}
    plan = "python -m poweropd_lite.plan --config bundled --alpha 3 --gpu t4"
    assert "14.6 GiB can be used" in by_check["memory"]["found"] and by_check["memory"]["found"].endswith(plan)
    assert "known only there" in by_check["driver"]["found"]


def test_cards_by_their_compute_capability():
    l4 = of_card("l4", teacher_bits=8, optimizer="adamw8bit", engine="vllm", loader="unsloth")
    assert {level for level, _ in l4.values()} == {"ok"} and "bfloat16" in l4["compute dtype"][1]
    assert "LLM.int8 from compute capability 7.5 on, 8-bit AdamW from" in l4["bitsandbytes"][1]
    p100 = of_card("P100")
    assert p100["bitsandbytes"][0] == p100["loader and engine"][0] == "ok"  # NF4, and the loop
    assert p100["torch"][0] == "warning" and "cu126" in p100["torch"][1]
    assert p100["compute dtype"][0] == "warning"
    p100 = of_card("p100", teacher_bits=8, engine="vllm")
    assert "too little for LLM.int8; --teacher-bits 4" in p100["bitsandbytes"][1]
    assert p100["loader and engine"][0] == "warning" and p100["loader and engine"][1].endswith("--engine loop")
    refused = of_card("t4", full_finetune=True)["compute dtype"]
    assert refused[0] == "refusal" and "loses small updates" in refused[1]


def test_a_card_by_its_size_alone():
    found = of_card("12")
    assert set(found) == {"compute capability", "memory", "driver"}
    level, text = found["compute capability"]
    assert level == "warning" and "bfloat16, NF4 (6.0), vLLM (7.5), Unsloth (7.0), torch's own builds (7.5)" in text
    assert "11.5 GiB can be used" in found["memory"][1]
    done = run_here(main, "--config", "bundled", "--gpu", "rtx9999")
    assert done.returncode == 2 and "neither a size in GB, such as 24, nor one of" in done.stderr


def test_a_card_without_a_config_is_asked_about_qwen3(tmp_path, monkeypatch):
    """The hub is out of reach and nothing is cached: of the models nothing is said, and the card is answered all the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = run_here(main, "--gpu", "t4")
    assert done.returncode == 0 and "no config is named: taking --config qwen3-0.6b-4b" in done.stderr
    said = " ".join(done.stdout.split())
    assert "warning models: not looked at: no tokenizer for the student at 'Qwen/Qwen3-0.6B-Base'" in said
    assert "nothing refused, models not looked at: 6 ok, 2 warnings, 0 refusals" in said and "next" not in said
    assert "warning compute dtype: for t4, not this machine" in done.stdout
    assert "python -m poweropd_lite.plan --config qwen3-0.6b-4b --gpu t4" in said
    wrong = run_here(main, "--gpu", "t4", "--student", str(tmp_path / "none"), "--teacher", "bundled")
    assert wrong.returncode == 1 and "refusal models: no tokenizer for the student at" in wrong.stdout
    here = run_here(main, "--gpu", "t4", "--student", "Qwen/Qwen3-0.6B", "--teacher", "./none", "--data", "none.jsonl")
    assert here.returncode == 1 and "refusal teacher: there is no folder ./none" in here.stdout
    assert "refusal prompts: no file of problems at none.jsonl" in here.stdout
    served = ["--teacher", "http://localhost:9/v1", "--teacher-name", "Qwen/Qwen3-4B"]
    done = run_here(main, "--config", "bundled", "--gpu", "t4", *served)
    assert done.returncode == 0 and "warning models: not looked at: the tokenizer and config of a served" in done.stdout
