"""Evaluation and training by a user's function, with the real commands: from rows to scores, files, tables, reports and resume."""

import json
from pathlib import Path

import pytest
from conftest import DATA, quick_flags, run_evaluate, run_here, run_train

SCORE = '''
def score(completion, row):
    """The share of the most words that a row allows; fails for one row, once it says something."""
    return min(1.0, len(completion.split()) / row["extra"]["words"]) if row["extra"]["words"] < 9 else row["none"]
'''
ASK = ("--grader", "mine:score", "--n", "2", "--max-new-tokens", "8")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(said):
    return next(line.split() for line in said.splitlines() if line.startswith("rows ") and " to " in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a grader, ten rows without answers, and an evaluation of the base student on four of them."""
    path = tmp_path_factory.mktemp("own")
    questions = [row["problem"] for row in lines(Path(DATA))[:10]]
    rows = [{"question": q, "extra": {"words": 3 + 2 * i, "date": None}} for i, q in enumerate(questions)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "mine.py").write_text(SCORE)
    done = run_evaluate("--model", "bundled-student", "--benchmarks", "rows.jsonl", "--problems", "4", *ASK, cwd=path)
    assert done.returncode == 0, done.stderr
    (path / "said.txt").write_text(done.stdout)
    return path


def test_scores_and_their_table_follow_from_the_samples(folder):
    where, said = folder / "evaluations" / "bundled-student", (folder / "said.txt").read_text()
    samples = lines(where / "rows.jsonl")
    for sample in samples:
        most = sample["row"]["extra"]["words"]
        assert (
            sample["row"]["question"] == sample["question"]
            and sample["gold"] == ""
            and most == 3 + 2 * sample["problem"]
        )
        expected = min(1.0, len(sample["text"].split()) / most) if most < 9 else 0.0
        assert sample["score"] == expected and (sample["fault"] is None) == (most < 9)
    results = json.loads((where / "results.json").read_text())
    scores, by_problem = results["benchmarks"]["rows"], [[], [], [], []]
    for sample in samples:
        by_problem[sample["problem"]].append(sample["score"])
    mean, best = sum(map(sum, by_problem)) / 8, sum(map(max, by_problem)) / 4
    assert scores["avg@2"] == pytest.approx(mean) and scores["best@2"] == pytest.approx(best)
    assert (
        scores["best@1"] == pytest.approx(mean)
        and scores["undecided"] == 2
        and not {"pass@2", "no_answer"} & set(scores)
    )
    assert 0 < mean < 1 and table(said)[2] == f"{mean:.3f}"
    assert "mean score (95%)" in said and "best of 2 (95%)" in said and "Avg@" not in said and "Pass@" not in said
    assert "2 completions got no score, and count as 0; the first: KeyError: 'none' (mine.py, line 4)" in said
    assert results["grader"] == results["settings"]["grader"] == "mine:score" and results["paper"] is None
    assert "mean score / best of 2 (by mine:score) / tokens" in (where / "results.md").read_text()


def test_a_changed_grader_is_another_setting_until_its_samples_are_scored_again(folder):
    from poweropd_lite.evaluate.__main__ import main

    where = folder / "evaluations" / "bundled-student"
    drawn = [sample["text"] for sample in lines(where / "rows.jsonl")]
    (folder / "mine.py").write_text("def score(completion, row):\n    return len(completion) > 20\n")
    same = ("--model", "bundled-student", "--benchmarks", "rows.jsonl", "--problems", "4", *ASK, "--output", str(where))
    refused = run_here(main, *same, cwd=folder)
    assert (
        refused.returncode == 2
        and "grader_sha256" in refused.stderr
        and f"--regrade {where} to score" in refused.stderr
    )
    done = run_here(main, "--regrade", str(where), cwd=folder)
    assert done.returncode == 0, done.stderr
    samples, right = lines(where / "rows.jsonl"), [len(text) > 20 for text in drawn]
    assert [s["text"] for s in samples] == drawn and [s["score"] for s in samples] == right
    assert table(done.stdout)[2] == f"{sum(right) / 8:.3f}"
    assert "all scores are 0 or 1: the mean is Avg@n, the best Pass@k" in done.stdout
    again = run_here(main, *same, cwd=folder)  # which is what stands there now
    assert again.returncode == 0 and "every sample is in" in again.stdout
    compared = run_here(main, "--compare", str(where), str(where), cwd=folder)
    assert "mean score: first" in compared.stdout and "+0.000 (+0.000 to +0.000)" in compared.stdout
    maths = folder / "maths"
    copied = json.loads((where / "settings.json").read_text())
    maths.mkdir()
    (maths / "settings.json").write_text(json.dumps({**copied, "settings": {**copied["settings"], "grader": None}}))
    graded = [{**s, "correct": True, "answer": None, "undecided": False} for s in samples]
    (maths / "rows.jsonl").write_text("".join(json.dumps(s) + "\n" for s in graded))
    stopped = folder / "stopped"  # as a --regrade that was stopped leaves it: named anew, the samples as they were
    stopped.mkdir()
    other = {**copied["settings"], "grader": "mine:other"}
    (stopped / "settings.json").write_text(json.dumps({**copied, "settings": other}))
    (stopped / "rows.jsonl").write_text((where / "rows.jsonl").read_text())
    mixed = run_here(main, "--compare", str(stopped), str(stopped), cwd=folder)
    assert mixed.returncode == 2 and "that another function scored; type --regrade" in mixed.stderr
    apart = run_here(main, "--compare", str(where), str(maths), cwd=folder)
    assert apart.returncode == 2 and "by mine:score and" in apart.stderr and "by the maths grader" in apart.stderr
    for flags, words in (
        (("--grader", "mine.py:score"), "such as mine:score"),
        (("--grader", "mine:nothing"), "has no function nothing; it has score"),
        ((*ASK[:2], "--official-grading"), "leave one out"),
    ):
        wrong = run_here(main, "--model", "bundled-student", "--benchmarks", "rows.jsonl", *flags, cwd=folder)
        assert wrong.returncode == 2 and words in wrong.stderr and not wrong.stdout  # before anything is read
    (folder / "mine.py").write_text(SCORE)


def test_a_run_is_scored_by_it_and_evaluate_and_report_take_it_up(folder):
    from poweropd_lite.evaluate.__main__ import main
    from poweropd_lite.report.groups import group_runs
    from poweropd_lite.report.pictures import pictures
    from poweropd_lite.report.read import read_runs
    from poweropd_lite.report.words import sentences
    from poweropd_lite.report.write import gather

    flags = quick_flags(data="rows.jsonl", eval_benchmarks="none", steps=1, output="run", eval_max_new_tokens=8)
    done = run_train(*flags, "--hold-out", "3", "--eval-grader", "mine:score", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text())
    after, n = summary["evaluation_after"], 2
    assert f"  after   mean score {after['avg']:6.3f}   best of {n} {after['any']:6.3f}" in done.stdout
    metrics = [line for line in lines(folder / "run" / "metrics.jsonl") if "eval/kl" in line]
    assert metrics[-1][f"eval/best@{n}"] == after["any"] and f"eval/pass@{n}" not in metrics[-1]
    scored = run_here(main, "--model", "run", "--n", "2", cwd=folder)
    assert scored.returncode == 0, scored.stderr
    results = json.loads((folder / "run" / "eval" / "step_000001" / "results.json").read_text())
    assert results["benchmarks"]["held-out"]["avg@2"] == pytest.approx(after["avg"])
    assert results["benchmarks"]["held-out"]["problems"] == 3
    groups = group_runs(read_runs([folder / "run"]))
    numbers = gather(groups, groups[0], None)
    (said,) = sentences(groups, None)
    named = [row["name"] for row in numbers["table"]]
    assert f"mean score {after['avg']:.3g}" in said and {"mean score at the end", "best of 2 at the end"} <= set(named)
    assert "mean score on held-out by evaluate" in named and not any("@" in name for name in [*named, said])
    drawn = next(pictures(groups, numbers, None))
    assert drawn.title == "Mean score by step" and drawn.figure.axes[0].get_ylabel() == "mean score"
    (folder / "mine.py").write_text(SCORE + "\n")
    changed = run_train("--resume", "run", "--steps", "2", cwd=folder)
    assert changed.returncode == 2 and "eval_grader's file: " in changed.stderr
