"""The evaluate command through the real vLLM: adapter and whole model give the built-in loop's greedy answers."""

import json
import shutil

import pytest
from conftest import run_python

GREEDY = ["--benchmarks", "bundled", "--problems", "64", "--n", "1", "--top-k", "1"]


def answers(folder, *flags) -> dict[int, dict]:
    imported = {"loop": "peft", "vllm": "vllm"}[flags[flags.index("--engine") + 1]]
    done = run_python("-m", "poweropd_lite.evaluate", *GREEDY, *flags, cwd=folder, imported=imported)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    file = folder / flags[flags.index("--output") + 1] / "bundled.jsonl"
    return {record["problem"]: record for record in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize("model", ["run", "bundled-teacher"])
def test_vllm_gives_the_loop_s_greedy_answers(vllm_run, tmp_path, model):
    shutil.copytree(vllm_run[1], tmp_path / "run")
    ours = answers(tmp_path, "--model", model, "--engine", "loop", "--output", "loop")
    theirs = answers(tmp_path, "--model", model, "--engine", "vllm", "--output", "vllm")
    assert len(ours) == len(theirs) == 64
    same = sum(ours[i]["text"] == theirs[i]["text"] for i in ours)
    assert same >= 62  # where two ids are nearly as likely, rounding decides
    assert sum(ours[i]["correct"] for i in ours) >= 40  # it is the trained model, not its base (a third)
    found = json.loads((tmp_path / "vllm" / "settings.json").read_text())
    assert found["settings"]["engine"] == "vllm" and found["about"]["batch_size"] == 512
