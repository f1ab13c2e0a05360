"""What the evaluate command refuses: one message, exit code 2, nothing left behind."""

import json
import shutil

import pytest
import torch
from conftest import edit, make_engine, run_evaluate
from safetensors.torch import load_file, save_file

from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.sampling import sample_answers
from poweropd_lite.method.logprobs import Sampling

BAD = [
    (["--benchmarks", "math50"], ["no benchmark named 'math50'", "gsm8k, math500, amc23, aime24, aime25, minerva, olympiadbench"]),
    (["--benchmarks", "empty.jsonl"], ["no usable problem in empty.jsonl", "it has no rows"]),
    (["--benchmarks", "columns.jsonl"], ["no usable problem in columns.jsonl", "it has q, a", "--prompt-column"]),
    (["--k", "9"], ["Pass@9 needs 9 samples a problem, and n is 8", "--n 9"]),
    (["--k", "x"], ["whole numbers joined by commas"]),
    (["--model", "nowhere/at/all"], ["no folder nowhere/at/all", "type a run folder, an adapter, a model or a hub id"]),
    (["--model", "strange"], ["no run folder (config.yaml), no adapter (adapter_config.json) and no model"]),
    (["--max-new-tokens", "600"], ["512 positions", "--max-new-tokens"]),
    (["--max-new-tokens", "500"], ["512 positions", "--max-new-tokens"]),
    (["--model"], ["expected one argument"]),
    (["--samples", "3"], ["unknown argument '--samples'"]),
    (["--compare", "strange", "strange"], ["means nothing there"]),
    (["--benchmark-folder", "nowhere"], ["no folder nowhere"]),
    (["--benchmarks", "mean.jsonl"], ["can't be named 'mean'", "rename the file"]),
    (["--base", "x"], ["bundled-student is a whole model", "leave it out"]),
    (["--teacher", "self"], ["--teacher self is a setting of training", "--teacher with the base model"]),
    (["--k", "²"], ["whole numbers joined by commas"]),
    (["--regrade", "strange"], ["strange holds no evaluation"]),
    (["--model", ""], ["model: found ''"]),
    (["--output", "columns.jsonl"], ["columns.jsonl is a file"]),
    (["--output", "strange"], ["strange is not empty and holds no evaluation"]),
]  # fmt: skip


@pytest.mark.parametrize("flags, words", BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, flags, words):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "mean.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    (tmp_path / "columns.jsonl").write_text('{"q": "1+1?", "a": "2"}\n')
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").write_text("")
    model = [] if "--model" in flags else ["--model", "bundled-student"]
    flags = [*(["--benchmarks", "bundled"] if "--benchmarks" not in flags else []), *model, *flags]
    if "--compare" in flags or "--regrade" in flags:
        flags = flags[2 if "--compare" in flags else 4 :]
    done = run_evaluate(*flags, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    # Nothing is left behind.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["columns.jsonl", "empty.jsonl", "mean.jsonl", "strange"]


def test_an_empty_folder_of_the_user_s_is_not_removed(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    done = run_evaluate("--model", "adapter", "--problems", "2", "--output", "mine/e", cwd=tmp_path)
    assert done.returncode == 2 and "can't be read" in done.stderr
    assert list(tmp_path.glob("mine/*")) == [] and (tmp_path / "mine").is_dir()


def test_an_adapter_of_another_base_model_is_refused(trained, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "run" / "adapter", adapter)
    (adapter / "manifest.json").unlink()
    done = run_evaluate("--model", "adapter", "--base", "Qwen/Qwen3-0.6B-Base", cwd=tmp_path)
    assert done.returncode == 2 and "was trained on" in done.stderr and "--base is Qwen/Qwen3-0.6B-Base" in done.stderr
    weights = load_file(adapter / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: torch.zeros(16, 7)}, adapter / "adapter_model.safetensors")
    done = run_evaluate("--model", "adapter", "--problems", "2", cwd=tmp_path)
    assert not (tmp_path / "evaluations").exists()  # no empty folder is left
    assert done.returncode == 2 and f"1 of {len(weights)} tensors differ" in done.stderr, done.stderr
    assert "another base model" in done.stderr
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/model"}))
    done = run_evaluate("--model", "adapter", cwd=tmp_path)
    assert done.returncode == 2 and "names /gone/model base model, which is not here; type --base" in done.stderr


@pytest.mark.parametrize("start, name", [("loftq", "LoftQ"), ("lora_ga", "LoRA-GA")])
def test_an_adapter_that_moved_its_base_is_not_scored_on_the_base_as_it_is(trained, tmp_path, start, name):
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    edit("adapter_config.json", lambda c: c | {"init_lora_weights": start})(tmp_path / "adapter")
    done = run_evaluate("--model", "adapter", "--problems", "2", "--n", "1", cwd=tmp_path)
    assert done.returncode == 2 and f"began with {name}, which changed its base, too" in done.stderr, done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def weights_of(folder, change):
    """Changes a weight in the one file of safetensors that a folder holds."""
    file = folder / ("model.safetensors" if (folder / "config.json").is_file() else "adapter_model.safetensors")
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def not_a_number(weights):
    weights[sorted(weights)[0]].view(-1)[-1] = torch.nan


@pytest.mark.parametrize("what", ["a base's weight", "an adapter's weight", "lora_alpha"])
def test_what_is_not_finite_is_refused_and_not_scored_zero(trained, other, tmp_path, what):
    folder = tmp_path / "adapter"
    shutil.copytree(trained / "run" / "adapter", folder)
    (folder / "manifest.json").unlink()
    if what == "lora_alpha":
        edit("adapter_config.json", lambda c: c | {"lora_alpha": float("nan")})(folder)
    elif what == "an adapter's weight":
        weights_of(folder, not_a_number)
    else:
        folder = other("student", lambda f: weights_of(f, not_a_number))
    done = run_evaluate("--model", str(folder), "--benchmarks", "bundled", "--problems", "2", "--n", "1", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout
    assert "not finite" in done.stderr and "0.0%" not in done.stdout


def test_a_base_in_a_folder_of_any_name_is_taken_and_said(trained, other, tmp_path):
    base = other("student", lambda folder: None)
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    flags = ["--benchmarks", "bundled", "--problems", "2", "--n", "1"]
    done = run_evaluate("--model", "adapter", "--base", base, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"and --base is {base}: whether that folder holds that model is known by the shapes" in done.stdout
    wrong = other("teacher", lambda folder: None)
    done = run_evaluate("--model", "adapter", "--base", wrong, *flags, "--output", "e", cwd=tmp_path)
    assert done.returncode == 2 and "tensors differ" in done.stderr


def test_log_probs_that_are_not_numbers_are_no_answers(student_model, prompts, pair):
    """Whatever engine gives them: here the loop, of a model whose last norm is NaN."""
    engine = make_engine(student_model, pair)  # which compares the decoder with the model's own forward
    with torch.no_grad():
        student_model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="log-probs that are not numbers"):
        sample_answers(engine, prompts[:2], [(0, 0), (1, 0)], Sampling(), 8, seed=0)
