"""One's own data without answers, from training to comparison: what is held out, the KL to the teacher, and no flag twice."""

import json
import math
from pathlib import Path

import pytest
from conftest import DATA, TINY, quick_flags, run_evaluate, run_export, run_python, run_train
from safetensors.torch import load_file

from poweropd_lite.base.config import load_config
from poweropd_lite.run.closeness import difference_error
from poweropd_lite.run.folder import new_run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs on questions alone, `power` and `log_ratio`, and what the first said."""
    folder = tmp_path_factory.mktemp("own")
    questions = [{"question": row["problem"]} for row in lines(Path(DATA))][:60]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for reward in ("power", "log_ratio"):
        data = "mine.jsonl" if reward == "power" else str(folder / "mine.jsonl")
        flags = quick_flags(data=data, reward=reward, output=reward, eval_benchmarks="none", steps=2)
        done = run_train(*flags, "--hold-out", "10", cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / f"{reward}.txt").write_text(done.stdout)
    return folder


def test_ten_prompts_are_never_trained_on_and_the_kl_to_the_teacher_is_said(runs):
    said, summary = (runs / "power.txt").read_text(), json.loads((runs / "power" / "summary.json").read_text())
    assert "mine.jsonl: prompts from 'question', no answers in a column (--answer-column names one)" in said
    assert "10 of 10 held-out prompts have no answer" in said
    assert "the bundled pair can do its own kind of sums and nothing else" in said
    assert "bundled-student (LoRA" in said and "<- bundled-teacher (4-bit), 50 prompts" in said
    before, after = (summary[f"evaluation_{name}"] for name in ("before", "after"))
    for name, record in (("before", before), ("after", after)):
        text = f"KL to the teacher {record['kl']:.3f} ± {record['kl_error']:.3f} nats a token, its log p"
        ends = f"{record['length']:.0f} tokens, {record['stop_share']:.1%} stop"
        assert f"{name:6}  {text} {record['teacher_logprob']:.3f}, {ends}\n" in said
    error = math.hypot(before["kl_error"], after["kl_error"])
    less = f"KL on 10 prompts: {after['kl'] - before['kl']:+.3f} ± {error:.3f} nats a token (± one standard error)"
    noise = ", within noise" * (abs(after["kl"] - before["kl"]) < 1.96 * error)
    assert f"  on      {less.replace(' (', f'{noise} (')}\n" in said
    assert summary["accuracy_before"] is None and after["kl"] < before["kl"]
    metrics = lines(runs / "power" / "metrics.jsonl")
    steps = [line for line in metrics if "loss" in line]
    for line in steps:  # nothing is truncated, so that the estimate is the mean log ratio
        assert line["kl/train"] == pytest.approx(-line["log_ratio/mean"], rel=1e-6) and line["kl/train_error"] > 0
        assert f"KL {line['kl/train']:.3f}" in said
    assert [line["eval/kl"] for line in metrics if "eval/kl" in line] == [before["kl"], after["kl"]]
    assert summary["rollouts_before"]["kl"] == steps[0]["kl/train"]


def test_evaluate_takes_the_run_s_own_prompts_and_says_the_same(runs):
    refused = run_evaluate("--compare", "power", "log_ratio", cwd=runs)
    assert (
        refused.returncode == 2
        and "evaluate it first: python -m poweropd_lite.evaluate --model power" in refused.stderr
    )
    for reward in ("power", "log_ratio"):
        done = run_evaluate("--model", reward, cwd=runs)
        assert done.returncode == 0, done.stderr
        after = json.loads((runs / reward / "summary.json").read_text())["evaluation_after"]
        near = json.loads((runs / reward / "eval" / "step_000002" / "kl.json").read_text())
        for name in ("kl", "kl_error", "teacher_logprob", "length", "stop_share"):
            assert near[name] == pytest.approx(after[name], abs=1e-5)
        assert "mine.jsonl that were not trained on" in done.stdout and near["completions"] == 10
    again = run_evaluate("--model", "power", cwd=runs)
    assert "every sample is in power/eval/step_000002 already" in again.stdout
    compared = run_evaluate("--compare", "power", "log_ratio", cwd=runs)
    first, second = (
        json.loads((runs / reward / "eval" / "step_000002" / "kl.json").read_text())
        for reward in ("power", "log_ratio")
    )
    assert first["kl"] == pytest.approx(sum(s for s, _ in first["by_completion"]) / first["tokens"])
    error = difference_error(first["by_completion"], second["by_completion"])
    assert 0 < error < math.hypot(first["kl_error"], second["kl_error"])  # prompts and random numbers are the same
    apart = first["kl"] - second["kl"]
    interval = f"({apart - 1.96 * error:+.3f} to {apart + 1.96 * error:+.3f}, 95%)"
    assert f"difference {apart:+.3f} {interval}" in compared.stdout
    assert "one training run each" in compared.stdout


def test_held_out_problems_with_answers_are_graded_too_as_evaluate_grades_them(tmp_path):
    rows = lines(Path(DATA))[:40]
    talks = [
        [{"role": "user", "content": row["problem"]}, {"role": "assistant", "content": f"\\boxed{{{row['answer']}}}"}]
        for row in rows
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in [*talks, *talks]))
    flags = quick_flags(data="talks.jsonl", eval_benchmarks="none", steps=1, output="run")
    trained = run_train(*flags, "--hold-out", "6", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "6 copies of held-out prompts are not trained on either" in trained.stdout
    typed = "python -m poweropd_lite.evaluate --model bundled-teacher --problems-of run"
    assert f"  its teacher: {typed}\n" in trained.stdout
    done = run_evaluate("--model", "run", "--n", "2", "--teacher", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation_after"]
    results = json.loads((tmp_path / "run" / "eval" / "step_000001" / "results.json").read_text())
    assert results["benchmarks"]["held-out"]["avg@2"] == pytest.approx(after["avg"])
    assert results["benchmarks"]["held-out"]["problems"] == 6
    assert results["kl"]["kl"] == pytest.approx(after["kl"], abs=1e-5) and results["kl"]["completions"] == 6
    again = run_evaluate("--regrade", "run", cwd=tmp_path)  # beside a KL, answers are graded as before
    regraded = json.loads((tmp_path / "run" / "eval" / "step_000001" / "results.json").read_text())
    assert again.returncode == 0 and regraded["benchmarks"] == results["benchmarks"] and regraded["kl"] == results["kl"]
    ignored = run_evaluate("--model", "run", "--max-prompt-tokens", "100", cwd=tmp_path)
    assert ignored.returncode == 2 and "so --max-prompt-tokens would be ignored" in ignored.stderr
    the_teacher_and_the_untrained_student_are_asked_the_same(tmp_path)


def the_teacher_and_the_untrained_student_are_asked_the_same(folder):
    """From another folder, and the page's lines are theirs; the student's score is what the run itself found at step 0."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for model in ("bundled-student", "bundled-teacher"):
        done = run_evaluate("--model", model, "--problems-of", "../run", "--n", "2", cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert ("in 4 bits, as ../run had it" in done.stdout) == (model == "bundled-teacher")
    found = [
        json.loads((elsewhere / "evaluations" / f"bundled-{m}" / "results.json").read_text())
        for m in ("student", "teacher")
    ]
    assert [of["settings"]["bits"] for of in found] == [16, 4] and found[0]["benchmarks"]["held-out"]["of"][
        "hold_out"
    ] == 6
    scores = [of["benchmarks"]["held-out"]["avg@2"] for of in found]
    before = json.loads((folder / "run" / "summary.json").read_text())["accuracy_before"]
    assert scores[0] == before != scores[1]
    lines = ["--teacher", "elsewhere/evaluations/bundled-teacher", "--base", "elsewhere/evaluations/bundled-student"]
    page = run_python("-m", "poweropd_lite.report", "run", *lines, cwd=folder)
    assert page.returncode == 0, page.stderr
    assert f"Teacher: {scores[1]:.1%} (95%: " in page.stdout and "), Avg@2 on 6 of held-out" in page.stdout
    flags = quick_flags(data="talks.jsonl", eval_benchmarks="none", steps=1, output="other", system_prompt="Be brief.")
    assert run_train(*flags, "--hold-out", "6", cwd=folder).returncode == 0
    other = run_python("-m", "poweropd_lite.report", "other", *lines[:2], cwd=folder)
    assert other.returncode == 2 and "is not known to be of the prompts that other held out" in other.stderr
    # A run that is asked another's prompts: not among its own evaluations.
    done = run_evaluate("--model", "other", "--problems-of", "run", "--n", "1", "--problems", "2", cwd=folder)
    assert done.returncode == 0 and (folder / "evaluations" / "other" / "results.json").is_file(), done.stderr
    assert not (folder / "other" / "eval").exists()
    for wrong, why in (
        (["--problems-of", "elsewhere"], "--problems-of elsewhere is no run: it has no config.yaml"),
        (["--problems-of", "run", "--benchmarks", "bundled"], "--problems-of and --benchmarks both say which problems"),
    ):
        done = run_evaluate("--model", "bundled-student", *wrong, cwd=folder)
        assert done.returncode == 2 and why in done.stderr

    # Of a run without answers: the KL alone, in a folder of its own.
    (folder / "asked.jsonl").write_text("".join(json.dumps({"question": f"1 + {i}"}) + "\n" for i in range(20)))
    flags = quick_flags(data="asked.jsonl", eval_benchmarks="none", steps=1, output="unanswered")
    assert run_train(*flags, "--hold-out", "6", cwd=folder).returncode == 0
    asked = ["--model", "bundled-student", "--problems-of", "../unanswered", "--n", "2"]
    done = run_evaluate(*asked, cwd=elsewhere)
    assert done.returncode == 0 and "Avg@" not in done.stdout, done.stderr
    alone = json.loads((elsewhere / "evaluations" / "bundled-student-2" / "results.json").read_text())
    assert alone["benchmarks"] == {} and alone["kl"]["completions"] == 6

    # Other data under the name: which prompts are held out hangs on it, and a page takes none that were trained on.
    with open(folder / "talks.jsonl") as file:
        fewer = file.readlines()[3:-3]
    (folder / "talks.jsonl").write_text("".join(fewer[:30]))
    done = run_evaluate(
        "--model", "bundled-teacher", "--problems-of", "run", "--n", "1", "--output", "else", cwd=folder
    )
    assert done.returncode == 0 and "not known to be the prompts that run held out" in done.stdout, done.stderr
    page = run_python("-m", "poweropd_lite.report", "run", "--teacher", "else", cwd=folder)
    assert page.returncode == 2 and "else is not known to be of the prompts that run held out" in page.stderr


def test_the_card_of_a_run_without_accuracies_has_its_kl(runs):
    done = run_export("log_ratio", "--to", "adapter", "--output", "card", cwd=runs)
    assert done.returncode == 0, done.stderr
    summary = json.loads((runs / "log_ratio" / "summary.json").read_text())
    before, after = (summary[f"evaluation_{name}"]["kl"] for name in ("before", "after"))
    card = (runs / "card" / "README.md").read_text()
    assert f"not trained on: {before:.3f} before training, {after:.3f} after" in card
    assert "| data | mine.jsonl |" in card and str(runs) not in card  # a path of this machine tells its reader nothing


def test_a_run_of_a_file_is_named_after_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)

    def named(data):
        return new_run(load_config("bundled", data=str(data))).path.name

    made = [named(data) for data in ("bundled", "mine.jsonl", runs / "mine.jsonl")]
    assert made == ["power10-seed0", "mine-power10-seed0", "mine-power10-seed0-2"]
    for file, name in ((".hid.jsonl", "hid"), ("\u636e" * 82 + ".jsonl", "\u636e" * 20)):  # of three bytes each
        (tmp_path / file).write_text("")
        assert named(tmp_path / file) == f"{name}-power10-seed0"
    (tmp_path / "v1.2").mkdir()
    assert named(tmp_path / "v1.2") == "v1.2-power10-seed0"


def test_a_student_that_is_its_teacher_is_said_to_have_been_paid_nothing(tmp_path):
    pair = ["--config", "bundled", "--student", "bundled-teacher", "--teacher-bits", "32"]
    flags = quick_flags(steps=1, eval_benchmarks="none", eval_every=0, batch_size=2, output="run", lr="none")
    done = run_train(*pair, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = sum(
        w.numel() for w in load_file(TINY / "teacher/model.safetensors").values()
    )  # its head is its embedding
    small = f"lr 5e-06, the default, is for students of 100,000,000 weights and more, and this one has {weights:,}:"
    assert small in done.stdout  # without the adapter's
    (line,) = lines(tmp_path / "run" / "metrics.jsonl")
    largest = max(abs(line["reward/min"]), abs(line["reward/max"]))
    assert (
        done.stdout.count(f"no token of step 1 was paid more than {largest:.1g} in size; what other rewards would pay")
        == 1
    )
    assert largest < 1e-3 and f"no token was paid more than {largest:.1g} in size" in done.stdout
    mistyped = run_evaluate("--model", f"{tmp_path.name}/rnu", cwd=tmp_path.parent)  # no hub id: runs are beside it
    assert mistyped.returncode == 2 and f"no folder {tmp_path.name}/rnu" in mistyped.stderr


@pytest.mark.parametrize("role, other", [("student", "teacher"), ("teacher", "student")])
def test_one_model_alone_is_refused(tmp_path, role, other):
    done = run_train(f"--{role}", "Qwen/Qwen3-0.6B", cwd=tmp_path)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert f"the {role} Qwen/Qwen3-0.6B is named, and no {other}; type --{other} with the model" in done.stderr
