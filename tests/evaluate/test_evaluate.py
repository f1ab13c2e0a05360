"""The evaluate command: scores that training's own evaluation gives, kill and rerun, comparison, regrading, bad input."""

import json
import shutil
import signal
from pathlib import Path

import forked
import pytest
import torch
from conftest import quick_flags, run_evaluate, run_python, run_train

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.evaluate import evaluate
from poweropd_lite.evaluate.chat import ChatConfig
from poweropd_lite.evaluate.paper import paper_row
from poweropd_lite.evaluate.results import compare
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.tables import comparison_table
from poweropd_lite.evaluate.target import end_of_turn
from poweropd_lite.kernels import head
from poweropd_lite.models.loading import load_tokenizer

SMALL = ["--problems", "12", "--n", "4", "--batch-size", "16"]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The folder in which the bundled student was evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    done = run_evaluate("--model", "bundled-student", *SMALL, "--official-grading", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_a_run_scores_what_its_training_said(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    done = run_evaluate("--model", "run", "--problems", "8", "--n", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation_after"]
    results = json.loads((tmp_path / "run" / "eval" / "step_000004" / "results.json").read_text())
    scores = results["benchmarks"]["bundled"]
    for ours, theirs in (("avg@2", "avg"), ("pass@2", "any"), ("length", "length")):
        assert scores[ours] == pytest.approx(summary[theirs])
    assert scores["truncated"] == pytest.approx(1 - summary["stop_share"])
    assert results["title"] == "bundled-student <- bundled-teacher, power 10" and results["kind"] == "run"
    assert results["settings"]["stop_tokens"] == ["<|endoftext|>", "<|im_end|>"]
    # Its adapter alone is the same model, and a Python started anew says the same.
    flags = ["--model", "run/adapter", "--problems", "8", "--n", "2", "--output", "alone"]
    alone = run_python("-m", "poweropd_lite.evaluate", *flags, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    texts = [
        [r["text"] for r in read(folder / "bundled.jsonl")]
        for folder in (tmp_path / "alone", tmp_path / "run/eval/step_000004")
    ]
    assert texts[0] == texts[1]


def test_the_files_hold_every_sample_and_the_scores_follow_from_them(evaluated):
    folder = evaluated / "evaluations" / "bundled-student"
    samples = read(folder / "bundled.jsonl")
    assert sorted((s["problem"], s["sample"]) for s in samples) == [(i, k) for i in range(12) for k in range(4)]
    for sample in samples:
        assert sample["prompt"].startswith("<|im_start|>user\n") and sample["question"] in sample["prompt"]
        assert sample["correct"] == (
            f"\\boxed{{{sample['gold']}}}" in sample["text"] and sample["answer"] == sample["gold"]
        )
    results = json.loads((folder / "results.json").read_text())
    scores = results["benchmarks"]["bundled"]
    right = [sum(s["correct"] for s in samples if s["problem"] == i) for i in range(12)]
    assert scores["avg@4"] == pytest.approx(sum(right) / 48) and scores["pass@4"] == pytest.approx(
        sum(map(bool, right)) / 12
    )
    pairs = [1 - (4 - c) * (3 - c) / 12 for c in right]
    assert scores["pass@2"] == pytest.approx(sum(pairs) / 12) and scores["pass@1"] == pytest.approx(scores["avg@4"])
    assert scores["length"] == pytest.approx(sum(s["tokens"] for s in samples) / 48)
    assert scores["truncated"] == pytest.approx(sum(s["tokens"] == 112 and s["truncated"] for s in samples) / 48)
    assert scores["no_answer"] == pytest.approx(sum(s["answer"] is None for s in samples) / 48)
    assert scores["avg@4_interval"][0] <= scores["avg@4"] <= scores["avg@4_interval"][1]
    assert scores["official_avg@4"] >= scores["avg@4"]  # it takes the last number of a text without a box
    assert results["settings"]["temperature"] == 0.6 and results["settings"]["n"] == 4
    said = (evaluated / "said.txt").read_text()
    assert f"{100 * scores['avg@4']:.1f}%" in said and "official Avg" in said and "not the whole set" in said
    assert (
        f"| bundled-student | {100 * scores['avg@4']:.2f} / {100 * scores['pass@4']:.2f} / {scores['length']:.0f} |"
        in (folder / "results.md").read_text()
    )


# Runs the evaluate command in a process that sends itself a signal once a file of samples has so many lines.
SIGNALLED = """
import os, sys
from poweropd_lite.cli import run_command
from poweropd_lite.evaluate.__main__ import main
from poweropd_lite.evaluate.folder import EvalFolder
number, lines = map(int, sys.argv[1:3])
real = EvalFolder.append
def append(self, name, records):
    real(self, name, records)
    if (self.path / f"{name}.jsonl").read_text().count("\\n") >= lines:
        os.kill(os.getpid(), number)
EvalFolder.append = append
run_command(lambda: main(sys.argv[3:]))
"""


def test_killed_and_started_again_it_gives_the_same(evaluated, tmp_path):
    """SIGKILL after two batches, of which a batch and four lines and a torn one are left; then Ctrl-C; then to the end."""
    flags = ["--model", "bundled-student", *SMALL]
    whole = evaluated / "evaluations" / "bundled-student"
    file = tmp_path / "evaluations" / "bundled-student" / "bundled.jsonl"
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        done = forked.run("-c", SIGNALLED, str(int(number)), "32", *flags, cwd=tmp_path)  # of 48, in batches of 16
        assert done.returncode == code and file.read_text().count("\n") == 32, done.stderr
        if number == signal.SIGKILL:
            first = file.read_text().splitlines()[:20]
            file.write_text("\n".join(first) + "\n" + first[0][:50])  # four of the next batch, and a torn line
    assert not (file.parent / "results.json").exists()
    assert run_evaluate(*flags, cwd=tmp_path).returncode == 0
    ours, theirs = read(file), read(whole / "bundled.jsonl")
    assert ours == [{k: v for k, v in r.items() if k != "official"} for r in theirs]
    again = run_evaluate(*flags, cwd=tmp_path)
    assert "every sample is in evaluations/bundled-student already" in again.stdout
    other = run_evaluate(*flags, "--seed", "1", "--problems", "2", cwd=tmp_path)
    assert "into evaluations/bundled-student-2" in other.stdout


def test_samples_of_other_settings_are_not_mixed(evaluated):
    done = run_evaluate(
        "--model",
        "bundled-student",
        *SMALL,
        "--temperature",
        "0.7",
        "--output",
        "evaluations/bundled-student",
        cwd=evaluated,
    )
    assert done.returncode == 2 and "temperature 0.6 there, 0.7 now" in done.stderr


def test_regrading_needs_no_model(evaluated, tmp_path):
    shutil.copytree(evaluated / "evaluations" / "bundled-student", tmp_path / "e")
    records = read(tmp_path / "e" / "bundled.jsonl")
    for record in records:
        record["correct"], record["answer"] = False, "?"
    (tmp_path / "e" / "bundled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    done = run_evaluate("--regrade", "e", "--k", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        json.loads((p / "results.json").read_text())
        for p in (tmp_path / "e", evaluated / "evaluations/bundled-student")
    )
    assert ours["benchmarks"]["bundled"]["avg@4"] == theirs["benchmarks"]["bundled"]["avg@4"]
    assert "pass@3" in ours["benchmarks"]["bundled"]
    assert run_evaluate("--regrade", "e", cwd=tmp_path).returncode == 0  # which keeps the k that were asked for
    assert "pass@3" in json.loads((tmp_path / "e" / "results.json").read_text())["benchmarks"]["bundled"]


def test_two_evaluations_are_compared_in_pairs(evaluated):
    done = run_evaluate("--model", "bundled-teacher", *SMALL, cwd=evaluated)
    assert done.returncode == 0, done.stderr
    folders = [str(evaluated / "evaluations" / name) for name in ("bundled-teacher", "bundled-student")]
    row = compare(*folders)["benchmarks"]["bundled"]["avg"]
    scores = [json.loads((Path(f) / "results.json").read_text())["benchmarks"]["bundled"]["avg@4"] for f in folders]
    assert (row["first"], row["second"]) == pytest.approx(tuple(scores))
    assert row["difference"] == pytest.approx(scores[0] - scores[1]) and row["interval"][0] > 0.2
    done = run_evaluate("--compare", *folders, cwd=evaluated)
    assert f"{100 * row['difference']:+.1f}" in done.stdout


def test_greedy_answers_are_transformers_own(evaluated, student_model, pair):
    done = run_evaluate(
        "--model", "bundled-student", "--problems", "4", "--n", "1", "--top-k", "1", "--output", "greedy", cwd=evaluated
    )
    assert done.returncode == 0, done.stderr
    for sample in read(evaluated / "greedy" / "bundled.jsonl"):
        ids = pair.tokenizer(sample["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = student_model.generate(ids, max_new_tokens=112, do_sample=False, eos_token_id=sorted(pair.stop_ids))
        assert sample["text"] == pair.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample["tokens"] == out.shape[1] - ids.shape[1]


def test_the_paper_s_row_stands_beside_a_run_of_its_models(trained, tmp_path):
    """A run whose models have the paper's names: its row is found by student, teacher, reward and the nearest alpha."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    base = Path(__import__("poweropd_lite").__file__).parent / "tiny" / "student"
    shutil.copytree(base, tmp_path / "Qwen3-0.6B-Base")
    text = (run / "config.yaml").read_text()
    text = text.replace("student: bundled", f"student: {tmp_path}/Qwen3-0.6B-Base").replace(
        "teacher: bundled", "teacher: Qwen/Qwen3-4B"
    )
    (run / "config.yaml").write_text(text)
    problems = [{"problem": f"Compute {i} + {i}.", "answer": str(2 * i)} for i in range(3)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    flags = ["--benchmarks", "gsm8k", "--benchmark-folder", ".", "--n", "2", "--max-new-tokens", "60"]
    done = run_evaluate("--model", "run", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gsm8k has 3 usable problems here and 1,319 in the original" in done.stdout
    assert "paper: Qwen3-0.6B-Base <- Qwen3-4B, power 10 " in done.stdout
    row = paper_row(load_config(run / "config.yaml"))
    assert row.exact and row.mean == {"avg@8": 25.2, "pass@8": 39.68, "length": 2172}
    line = next(line for line in done.stdout.splitlines() if line.startswith("GSM8K"))
    assert line.split()[-3:] == [
        f"{row.benchmarks['gsm8k']['avg@8']:.1f}",
        f"{row.benchmarks['gsm8k']['pass@8']:.1f}",
        f"{row.benchmarks['gsm8k']['length']:,.0f}",
    ]


def test_paper_rows():
    names = {"student": "Qwen/Qwen3-1.7B-Base", "teacher": "Qwen/Qwen3-8B"}
    assert paper_row(load_config(**names, reward="log_ratio")).mean["avg@8"] == 31.85
    near = paper_row(load_config(**names, alpha=400))
    assert near.mean["avg@8"] == 34.45 and not near.exact and "power 500 (nearest to alpha 400)" in near.title
    assert paper_row(load_config("bundled")) is None


def test_the_end_of_turn_comes_from_the_template(pair):
    assert pair.tokenizer.convert_ids_to_tokens(end_of_turn(pair.tokenizer)) == "<|im_end|>"
    plain = load_tokenizer("bundled", "student")
    plain.chat_template = None
    assert end_of_turn(plain) is None


def test_other_weights_or_settings_of_a_model_are_another_evaluation(trained, tmp_path):
    """An adapter of four times the scale is another model, though its weights are the same file."""
    shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()  # which alone would refuse what is changed here
    flags = ["--model", "adapter", "--problems", "2", "--n", "1"]
    assert "into evaluations/adapter\n" in run_evaluate(*flags, cwd=tmp_path).stdout
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "lora_alpha": 4 * config["lora_alpha"]})
    )
    assert "into evaluations/adapter-2\n" in run_evaluate(*flags, cwd=tmp_path).stdout
    config["base_model_name_or_path"] = "/another/machine/poweropd_lite/tiny/student"  # where it lay is no part of it
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert "every sample is in evaluations/adapter already" in run_evaluate(*flags, cwd=tmp_path).stdout


def test_a_folder_that_is_not_finished_is_not_scored(evaluated, tmp_path):
    shutil.copytree(evaluated / "evaluations" / "bundled-student", tmp_path / "e")
    lines = (tmp_path / "e" / "bundled.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "e" / "bundled.jsonl").write_text("".join(lines[:24]))
    for flags in (["--regrade", "e"], ["--compare", "e", "e"]):
        done = run_evaluate(*flags, cwd=tmp_path)
        assert done.returncode == 2 and "e is not finished: 24 of 48 of bundled samples are there" in done.stderr
    (tmp_path / "e" / "bundled.jsonl").write_text('{"problem": 0}\n' + "".join(lines))
    done = run_evaluate("--regrade", "e", cwd=tmp_path)
    assert done.returncode == 2 and "bundled.jsonl, line 1 is damaged (it is no sample)" in done.stderr


def test_a_second_benchmark_in_the_folder_does_not_change_what_was_asked_for(tmp_path):
    for name in ("one", "two"):
        rows = [{"problem": f"Compute {i} + 2.", "answer": i + 2} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", "bundled-student", "--n", "1", "--max-new-tokens", "60"]
    assert run_evaluate(*flags, "--benchmarks", "one.jsonl", cwd=tmp_path).returncode == 0
    done = run_evaluate(*flags, "--benchmarks", "two.jsonl", cwd=tmp_path)
    assert "also there, but not asked for now: one" in done.stdout and "mean" not in done.stdout
    results = json.loads((tmp_path / "evaluations" / "bundled-student" / "results.json").read_text())
    assert list(results["benchmarks"]) == ["two"]
    done = run_evaluate(*flags, "--benchmarks", "two.jsonl,one.jsonl", cwd=tmp_path)
    assert "every sample is in" in done.stdout and "mean" in done.stdout


def test_a_comparison_says_what_differs_and_takes_pass_at_the_smaller_n(evaluated, tmp_path):
    flags = ["--model", "bundled-student", "--problems", "12", "--n", "2", "--temperature", "1.0", "--output", "hot"]
    assert run_evaluate(*flags, cwd=tmp_path).returncode == 0
    found = compare(evaluated / "evaluations" / "bundled-student", tmp_path / "hot")
    one_each = "one training run each: what another seed would change is not in these intervals"
    assert found["runs"] == 0 and one_each not in comparison_table(found)
    assert one_each in comparison_table(found | {"runs": 2})
    assert found["differing"]["temperature"] == [0.6, 1.0] and found["differing"]["n"] == [4, 2] and found["k"] == 2
    results = json.loads((evaluated / "evaluations/bundled-student/results.json").read_text())
    assert found["benchmarks"]["bundled"]["pass"]["first"] == pytest.approx(results["benchmarks"]["bundled"]["pass@2"])


def test_a_signal_while_grading_stops_and_loses_no_sample(tmp_path):
    """Answers that take a second each: SIGTERM comes when the first of them is graded."""
    rows = [{"problem": f"Compute {i} + 2.", "answer": f"\\int_0^{{{i + 1}}} x^{{x^{{x}}}} dx"} for i in range(8)]
    (tmp_path / "slow.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--model",
        "bundled-teacher",
        "--benchmarks",
        "slow.jsonl",
        "--n",
        "8",
        "--max-new-tokens",
        "60",
        "--output",
        "e",
    ]
    signalled = """
import os, signal, sys
from poweropd_lite.cli import run_command
from poweropd_lite.evaluate.__main__ import main
from poweropd_lite.grade.judges import Judges
real = Judges.decide
def decide(self, questions, tick):
    def told(done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        tick(done, total)
    return real(self, questions, told)
Judges.decide = decide
run_command(lambda: main(sys.argv[1:]))
"""
    done = forked.run("-c", signalled, *flags, cwd=tmp_path)
    assert done.returncode == 143, done.stdout + done.stderr
    assert len(read(tmp_path / "e" / "slow.jsonl")) == 64 and not (tmp_path / "e" / "results.json").exists()


def test_a_model_without_a_chat_template_is_said_to_be_one(tmp_path, student_model, pair):
    student_model.save_pretrained(tmp_path / "plain")
    pair.tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    done = run_evaluate("--model", "plain", "--problems", "2", "--n", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plain has no chat template: problems are put as plain text" in done.stdout


def test_python_gives_the_same_and_leaves_torch_s_threads_alone(evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    done = evaluate("bundled-student", problems=12, n=4, batch_size=16, benchmarks=["bundled"], k=3, kernels="off")
    switched_off = head.switched_off
    head.switch("auto")
    assert switched_off
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    theirs = json.loads((evaluated / "evaluations/bundled-student/results.json").read_text())
    assert done.results["benchmarks"]["bundled"]["avg@4"] == theirs["benchmarks"]["bundled"]["avg@4"]
    assert done.folder == Path("evaluations/bundled-student") and "pass@3" in done.results["mean"]
    # How many answers are sampled at a time is no part of what they are.
    again = evaluate("bundled-student", problems=12, n=4, batch_size=5, benchmarks=["bundled"], k=3)
    assert again.folder == done.folder and again.results["mean"] == done.results["mean"]


def test_defaults_are_the_paper_s():
    config = EvalConfig(model="x")
    assert (config.n, config.temperature, config.top_k, config.top_p) == (8, 0.6, 0, 1.0)
    assert config.ks == [1, 2, 4]


@pytest.mark.parametrize("settings", [EvalConfig, ChatConfig])
def test_the_kernels_are_a_setting_as_in_training(settings):
    ours, theirs = settings.model_fields["kernels"], Config.model_fields["kernels"]
    assert (ours.default, ours.description, ours.annotation) == (theirs.default, theirs.description, theirs.annotation)


def test_training_is_evaluated_on_several_benchmarks(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"question": f"Compute {i} + 2.", "answer": i + 2}) + "\n" for i in range(4))
    )
    flags = quick_flags(steps=1, eval_benchmarks="bundled,own.jsonl", eval_every=0)
    done = run_train("--config", "bundled", *flags, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "evaluated on 8 of bundled, evaluated on 4 of own" in done.stdout
    metrics = read(tmp_path / "run" / "metrics.jsonl")[0]
    for name in ("avg@2", "pass@2", "length", "greedy", "answer_share"):
        assert metrics[f"eval/{name}"] == pytest.approx(
            (metrics[f"eval/bundled/{name}"] + metrics[f"eval/own/{name}"]) / 2
        )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["evaluation_after"]["benchmarks"]) == {"bundled", "own"}
