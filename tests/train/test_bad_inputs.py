"""Bad input: exit code 2, one clear message, no traceback, and nothing left behind. Through the command's own main."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poweropd_lite.cli import run_command
from poweropd_lite.train.__main__ import main

TINY = Path(__file__).parents[2] / "poweropd_lite" / "tiny"

# flags, and words that the message must hold
FLAGS = [
    (["--alpha", "0"], ["alpha", "greater than 0"]),
    (["--alpha", "-1"], ["alpha", "greater than 0"]),
    (["--alpha", "nan"], ["alpha", "finite"]),
    (["--alpha", "inf"], ["alpha", "finite"]),
    (["--alpha", "ten"], ["alpha", "'ten'", "number"]),
    (["--alpha"], ["--alpha", "expected one argument"]),
    (["--alhpa", "10"], ["--alhpa", "did you mean '--alpha'"]),
    (["--temprature=1"], ["did you mean '--temperature'"]),
    (["extra"], ["unknown argument 'extra'"]),
    (["--reward", "powr"], ["reward", "'powr'", "'power'"]),
    (["--score", "half"], ["score", "'sampled' or 'full'"]),
    (["--stop-mode", "keep"], ["stop_mode", "cross_eos"]),
    (["--steps", "0"], ["steps", "greater than or equal to 1"]),
    (["--steps", "1.5"], ["steps", "integer"]),
    (["--batch-size", "0"], ["batch_size"]),
    (["--seed", "-1"], ["seed"]),
    (["--top-p", "0"], ["top_p"]),
    (["--top-p", "1.1"], ["top_p"]),
    (["--top-k", "-5"], ["top_k"]),
    (["--temperature", "0"], ["temperature", "greater than 0"]),
    (["--lr", "0"], ["lr", "greater than 0"]),
    (["--teacher-bits", "3"], ["teacher_bits", "4, 8, 16 or 32"]),
    (["--engine", "vlm"], ["engine", "'loop'"]),
    (["--lora-rank", "0"], ["lora_rank"]),
    (["--student", ""], ["student"]),
    (["--score", "sampled", "--stop-mode", "relabel"], ["relabel", "--score full"]),
    (["--warmup-steps", "200"], ["warmup_steps 200", "--warmup-steps 5"]),
    (["--token-budget", "100"], ["token_budget 100", "--token-budget 240"]),
    (["--full-finetune", "--modules-to-save", "embed_tokens"], ["leave out --modules-to-save"]),
    (["--lora-targets", "q_proj,lm_head"], ["--modules-to-save lm_head"]),
    (["--full-finetune", "--dtype", "float16"], ["--dtype bfloat16"]),
    (["--config", "qwen3-0.6-4b"], ["no config named", "did you mean 'qwen3-0.6b-4b'"]),
    (["--config", "bundled", "--data", "my.csv"], ["no file of problems at my.csv", "JSON, JSONL or Parquet"]),
    (["--config", "missing.yaml"], ["no config file at missing.yaml", "bundled"]),
    (["--config", "bundled", "--dtype", "float16"], ["float16 needs a CUDA card", "--dtype float32"]),
    (["--config", "bundled", "--optimizer", "adamw8bit"], ["CUDA card", "--optimizer adamw"]),
    (["--config", "bundled", "--teacher-bits", "8"], ["CUDA card", "--teacher-bits 4"]),
    (["--config", "bundled", "--lora-targets", "c_attn"], ["no module named c_attn", "q_proj"]),
    (["--config", "bundled", "--max-new-tokens", "500"], ["628 tokens long", "512 positions", "--max-new-tokens"]),
    (["--config", "bundled", "--student", "no/such-folder/here"], ["there is no such folder", "type --student with"]),
    (["--config", "bundled", "--lora-targets", "q_proj, lm_head"], ["--modules-to-save lm_head"]),
    (["--config", "bundled", "--lora-targets", "norm"], ["PEFT can't put an adapter on 'norm'"]),
    (["--config", "bundled", "--eval-max-new-tokens", "500"], ["628 tokens long", "--eval-max-new-tokens"]),
    (["--config", "bundled", "--tracker", "trackio"], ["trackio is not installed", "pip install trackio"]),
    (["--config", "bundled", "--threads", "5000"], ["threads"]),
    (["--config", "bundled", "--alpha", "1e40"], ["alpha"]),
    (["--config", "bundled", "--data", "missing.jsonl"], ["no file of problems at missing.jsonl", "--data"]),
    (["--config", "bundled", "--eval-benchmarks", "missing.json"], ["missing.json", "--eval-benchmarks"]),
    (["--resume", "nowhere"], ["nowhere is not a run folder"]),
    (["--resume", "nowhere", "--alpha", "2"], ["--alpha can't change"]),
]  # fmt: skip

# a config file's text, and words that the message must hold
YAMLS = [
    ("alhpa: 3", ["'alhpa'", "did you mean 'alpha'"]),
    ("alpha: [1, 2]", ["alpha", "number"]),
    ("alpha: 3\nalpha: 4", ["alpha twice"]),
    ("just words", ["must hold 'setting: value' lines"]),
    ("- a\n- b", ["must hold 'setting: value' lines"]),
    ("alpha: {", ["is not YAML"]),
    ("alpha: 3\nreward: powr\nsteps: 0", ["reward", "steps"]),
    ("alpha: yes", ["alpha", "not a switch"]),
    ("seed: 2020-13-45", ["is not YAML"]),
    ("[" * 3000, ["is not YAML"]),
    ("trust_remote_code: maybe", ["trust_remote_code"]),
]

# a file of problems, its name, and words that the message must hold
DATA = [
    ("", "empty.jsonl", ["no usable problem", "no rows"]),
    ("{oops", "broken.json", ["is not JSON"]),
    ('{"problem": "x"}', "object.json", ["must hold a list"]),
    ('{"q": "x"}\n', "columns.jsonl", ["no column problem or question", "it has q"]),
    ('{"problem": ' + "9" * 5000 + "}", "digits.jsonl", ["line 1", "not JSON"]),
    ("[" * 100_000, "deep.json", ["is not JSON"]),
    ('{"problem": "\\ud800"}', "surrogate.jsonl", ["line 1", "lone surrogate"]),
    ('"text"', "text.jsonl", ["line 1: not an object"]),
    ('{"problem": [{"role": "user", "content": null}]}', "null.jsonl", ["neither a text nor a list of messages"]),
    ('{"problem": [{"role": "assistant", "content": "x"}]}', "turn.jsonl", ["must end with the user's"]),
    ("not parquet", "fake.parquet", ["not a Parquet file"]),
    ("question,answer\n1+1?,2\n", "table.csv", ["table.csv is a table of a kind that is not read here", "to_json("]),
    (json.dumps({"problem": "word " * 300}), "long.jsonl", ["line 1", "max_prompt_tokens 128", "--max-prompt-tokens"]),
]


def refuse(argv: list[str], words: list[str], capsys, folder: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(argv))
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith("error: ") and "Traceback" not in message
    assert [word for word in words if word not in message] == [], message
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("argv", "words"), FLAGS, ids=lambda v: " ".join(v)[:40])
def test_bad_flags(argv, words, capsys, here):
    refuse(argv, words, capsys, here)


@pytest.mark.parametrize(("text", "words"), YAMLS, ids=lambda v: str(v)[:30])
def test_bad_yaml(text, words, capsys, here):
    (here / "bad.yaml").write_text(text)
    refuse(["--config", "bad.yaml"], words, capsys, here)


@pytest.mark.parametrize(("text", "name", "words"), DATA, ids=lambda v: str(v)[:20])
def test_bad_data(text, name, words, capsys, here):
    (here / name).write_text(text)
    refuse(["--config", "bundled", "--data", name], words, capsys, here)


def test_a_folder_that_holds_something(capsys, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("precious")
    refuse(["--config", "bundled", "--output", "mine"], ["mine is not empty", "--resume mine"], capsys, here)
    assert (here / "mine" / "thesis.txt").read_text() == "precious"


def test_an_output_that_is_a_file(capsys, here):
    (here / "file").write_text("x")
    refuse(["--config", "bundled", "--output", "file"], ["file is a file"], capsys, here)


def other_student(here: Path, **files) -> str:
    """A copy of the bundled student with some JSON files changed by functions."""
    folder = here / "student"
    shutil.copytree(TINY / "student", folder)
    for name, change in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return str(folder)


def swap_tokens(tokenizer: dict) -> dict:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return tokenizer


def cut_differently(tokenizer: dict) -> dict:
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-40]
    return tokenizer


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer": swap_tokens}, ["number their tokens differently", "2 of 479"]),
        ({"tokenizer": cut_differently}, ["cut the same text into different tokens"]),
        ({"generation_config": lambda c: {**c, "eos_token_id": [474, 505]}}, ["stop ids [505]", "eos_token_id"]),
        ({"config": lambda c: {**c, "max_position_embeddings": 200}}, ["240 tokens long", "200 positions"]),
        ({"config": lambda c: {**c, "model_type": "no_such_model"}}, ["no model config for the student"]),
        ({"config": lambda c: {**c, "num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}},
         ["lack 22 tensors", "is the download whole?"]),
        ({"config": lambda c: {**c, "hidden_size": "wide"}}, ["hidden_size", "--student"]),
        ({"generation_config": lambda c: {**c, "eos_token_id": [[1]]}}, ["eos_token_id", "[[1]]"]),
    ],
    ids=["swapped tokens", "other merges", "stop id outside", "short context", "unknown model", "missing layers", "odd size", "odd stops"],
)  # fmt: skip
def test_a_pair_that_cannot_be_distilled(files, words, capsys, here):
    student = other_student(here, **files)
    refuse(["--config", "bundled", "--student", student, "--output", "out"], words, capsys, here)


def test_prompts_with_tokens_that_the_teacher_does_not_have(capsys, here):
    """The template's empty think block, before a teacher whose tokenizer knows no such token."""
    folder = here / "teacher"
    shutil.copytree(TINY / "teacher", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if "think" not in t["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["prompts hold tokens that", "'<think>', '</think>'"]
    refuse(["--config", "bundled", "--teacher", str(folder)], words, capsys, here)


def test_a_generation_config_that_cannot_be_read(capsys, here):
    student = other_student(here)
    (Path(student) / "generation_config.json").write_text("{")
    refuse(["--config", "bundled", "--student", student], ["generation_config.json can't be read"], capsys, here)


def test_runs_that_is_a_file(capsys, here):
    (here / "runs").write_text("x")
    refuse(["--config", "bundled"], ["runs is a file", "--output"], capsys, here)


def test_a_truncated_weights_file(capsys, here):
    student = other_student(here)
    weights = Path(student) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refuse(["--config", "bundled", "--student", student, "--output", "out"], ["student", student], capsys, here)


def test_the_real_process_exits_with_2_and_one_message(here):
    command = [sys.executable, "-m", "poweropd_lite.train", "--alpha", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: alpha: found '0', but it should be greater than 0; the default is --alpha 10.0\n"
