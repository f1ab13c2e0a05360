"""The real command: a short run and what it leaves behind, every reward, and failure in the middle."""

import json
import re
import shutil

import pytest
import torch
import yaml
from conftest import DATA, quick_flags, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.run.checkpoint import RunState
from poweropd_lite.run.recorder import seconds_left
from poweropd_lite.train import train


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps through the command, without --config: (its output, its folder)."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_train(
        "--alpha",
        "10",
        *quick_flags(data="bundled", sample_every=2, tracker="tensorboard", guard_every=2, importance_cap=2),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "runs" / "power10-seed0"


def test_the_command_says_what_it_trains_and_how_to_train_qwen(finished):
    output, _ = finished
    first = output.splitlines()[0]
    assert "bundled pair" in first and "python -m poweropd_lite.train --config qwen3-0.6b-4b" in first


def test_progress_shows_every_figure_and_an_eta(finished):
    output, _ = finished
    shown = re.findall(
        r"step (\d)/4  loss [-+.\d]+  reward [-+.\d]+  KL [.\d]+  grad [.\d]+  tok/s \d+  ETA \d+:\d\d", output
    )
    assert shown == ["1", "2", "3", "4"]


def test_a_tokenizer_of_several_templates_is_handed_over_with_them(tmp_path):
    from transformers import AutoTokenizer

    from poweropd_lite.models.loading import model_path

    shutil.copytree(model_path("bundled", "student"), tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    (tmp_path / "student" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(tmp_path / "student")
    settings = {"student": str(tmp_path / "student"), "data": DATA, "steps": 1, "batch_size": 2, "eval_every": 0}
    config = load_config("bundled", **settings, max_new_tokens=4, eval_benchmarks=None, output=str(tmp_path / "run"))
    assert train(config).finished
    handed = AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter")
    assert handed.chat_template["tool_use"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("step", "every", "evaluated", "seconds"),
    [(10, 25, 1, 90 * 0.5 + 4 * 8), (25, 25, 1, 75 * 0.5 + 4 * 8), (26, 25, 2, 74 * 0.5 + 3 * 4), (100, 25, 4, 2),
     (10, 0, 1, 90 * 0.5 + 8), (10, 0, 0, 90 * 0.5)],
)  # fmt: skip
def test_what_a_run_has_to_come_is_steps_and_evaluations(step, every, evaluated, seconds):
    """Steps of 0.4 and 0.6 s, evaluations of 8 s in all."""
    state = RunState(step=step, evaluations={str(i): {} for i in range(evaluated)}, seconds={"evaluate": 8.0})
    config = load_config("bundled", steps=100, eval_every=every)
    assert seconds_left(config, state, [0.4, 0.6]) == pytest.approx(seconds)


def test_the_summary_says_before_after_time_files_and_what_next(finished):
    output, run = finished
    summary = json.loads((run / "summary.json").read_text())
    for word in ("before", "after"):
        assert re.search(rf"{word} +Avg@2 +{summary[f'accuracy_{word}']:.1%}", output)
    assert "time " in output and "evaluate" in output and str(run.relative_to(run.parent.parent)) in output
    assert "--resume runs/power10-seed0 --steps 8" in output


def test_the_run_folder_holds_what_the_docs_say(finished):
    _, run = finished
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["finished"], summary["reward"], summary["alpha"]) == (4, True, "power", 10.0)
    evaluations = [line for line in lines(run / "metrics.jsonl") if "eval/avg@2" in line]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert summary["accuracy_before"] == evaluations[0]["eval/avg@2"]
    assert summary["accuracy_after"] == evaluations[2]["eval/avg@2"]
    assert set(summary["seconds"]) == {"rollout", "teacher", "student", "guard", "optimizer", "evaluate", "save"}
    assert yaml.safe_load((run / "config.yaml").read_text())["alpha"] == 10.0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
    suffixes = {p.suffix for p in (run / "checkpoints").rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json"}
    samples = lines(run / "samples.jsonl")
    assert [(s["step"], s["kind"]) for s in samples] == [
        (0, "eval"),
        (1, "train"),
        (2, "train"),
        (2, "eval"),
        (4, "train"),
        (4, "eval"),
    ]
    assert all(s["prompt"].startswith("<|im_start|>user\n") and s["completion"] for s in samples)


def test_the_glossary_explains_every_metric(finished):
    _, run = finished
    from pathlib import Path

    glossary = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names = {name.replace("@2", "@k") for line in lines(run / "metrics.jsonl") for name in line}
    assert [name for name in sorted(names) if f"`{name}`" not in glossary] == []
    listed = set(re.findall(r"^\| `([^`]+)`", glossary, re.MULTILINE))
    # On a CPU nothing is compiled, if it is not asked for; and the laboratory's stand in runs that use it.
    lab = {"reward/capped_share", "part/in_loss_share", "part/mean"}
    assert listed - names == {"time/compile", "optim/loss_scale", "eval/best@k", *lab}, (
        "the glossary lists metrics that no run writes"
    )


def test_a_tracker_gets_the_metrics(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = finished
    folder = run / "poweropd_lite"
    events = EventAccumulator(str(folder)).Reload()
    logged = [(e.step, e.value) for e in events.Scalars("reward/mean")]
    ours = [(line["step"], line["reward/mean"]) for line in lines(run / "metrics.jsonl") if "reward/mean" in line]
    assert [s for s, _ in logged] == [s for s, _ in ours] == [1, 2, 3, 4]
    assert [v for _, v in logged] == pytest.approx([v for _, v in ours], rel=1e-6)


def test_plain_peft_loads_the_adapter_with_equal_logits(finished, student_model):
    from peft import PeftModel
    from safetensors.torch import load_file

    _, run = finished
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        base = student_model(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(student_model, run / "adapter").eval()(input_ids=ids).logits
    # By hand, from the checkpoint: W + (lora_alpha / rank) B A in every layer.
    trained = load_file(run / "checkpoints" / "step_000004" / "trained.safetensors")
    from poweropd_lite.models.loading import load_causal_lm

    by_hand = load_causal_lm("bundled", "student", torch.float32).eval()
    with torch.no_grad():
        for name, a in trained.items():
            if "lora_A" in name:
                b = trained[name.replace("lora_A", "lora_B")]
                module = name.removeprefix("base_model.model.").split(".lora_A")[0]
                by_hand.get_submodule(module).weight += 32 / 16 * b @ a
        wanted = by_hand(input_ids=ids).logits
    torch.testing.assert_close(loaded, wanted, atol=1e-4, rtol=1e-4)
    assert (loaded - base).abs().max() > 0.01
    modules = json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) == 7 and modules == sorted(modules)  # the same weights, handed over again, are the same files


@pytest.mark.parametrize("reward", ["log_ratio", "clip", "tanh", "zscore", "full_kl"])
def test_every_reward_trains(reward, tmp_path):
    changes = {"steps": 6, "batch_size": 8, "eval_every": 0, "eval_benchmarks": None, "data": DATA}
    results = train(load_config("bundled", reward=reward, **changes, output=str(tmp_path / "run")))
    assert results.finished and results.summary["dropped_steps"] == 0
    steps = [line for line in lines(results.run / "metrics.jsonl") if "loss" in line]
    assert [line["optim/student_passes"] for line in steps] == [2.0 if reward == "zscore" else 1.0] * 6
    if reward == "clip":
        assert all(-1 <= line["reward/min"] <= line["reward/max"] <= 1 for line in steps)
    if reward == "full_kl":  # the KL of a whole distribution falls fast
        assert steps[-1]["reward/mean"] > 0.8 * steps[0]["reward/mean"]
        assert all(line["loss"] == pytest.approx(-line["reward/mean"], rel=1e-5) for line in steps)


@pytest.mark.parametrize("settings", [{"full_finetune": True, "lr": 3e-4}, {"teacher_bits": 16, "dtype": "bfloat16"}])
def test_full_finetuning_and_bfloat16_train_too(settings, tmp_path):
    changes = {"steps": 3, "batch_size": 8, "eval_every": 0, "eval_problems": 4, "eval_samples": 1, "data": DATA}
    results = train(load_config("bundled", **changes, **settings, output=str(tmp_path / "run")))
    assert results.finished and results.summary["dropped_steps"] == 0
    if "full_finetune" in settings:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(results.run / "model")
        assert model.dtype == torch.float32


def test_an_ignored_alpha_is_said(tmp_path):
    flags = quick_flags(steps=1, reward="tanh", alpha=3, horizon=9, clip_limit=1.0, eval_problems=2, eval_samples=1)
    done = run_train("--config", "bundled", *flags, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: alpha 3 is ignored: reward tanh has no exponent" in done.stdout
    assert "is for students of" not in done.stdout  # its lr is of its config
    assert done.stdout.count("is ignored") == 2 and "note: horizon 9 is ignored: tanh does not read it" in done.stdout


def test_ten_dropped_steps_in_a_row_stop_the_run_with_the_reason(tmp_path):
    """A learning rate of 1e30: every step would move weights by as much, and is undone."""
    flags = quick_flags(steps=60, lr=1e30, batch_size=4, eval_every=0, eval_problems=2, eval_samples=1)
    done = run_train("--config", "bundled", *flags, "--output", "run", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "gave up at step 10 of 60: 10 steps in a row were dropped" in done.stdout
    steps = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["optim/skipped"] for line in steps] == [1.0] * 10
    assert steps[-1]["optim/skipped_total"] == 10 and steps[-1]["optim/largest_weight"] == pytest.approx(1e30, rel=1e-3)
