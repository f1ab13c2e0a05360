"""The report of planted run folders: its numbers by hand, odd and damaged files, and what does not compare."""

import json
import math
import re

import pytest
from planted import planted

from poweropd_lite.base.errors import UserError
from poweropd_lite.report import report
from poweropd_lite.report.groups import group_runs
from poweropd_lite.report.page import STYLE, coloured
from poweropd_lite.report.pictures import pictures
from poweropd_lite.report.read import read_reference, read_runs
from poweropd_lite.report.series import by_step, density, first_step_at, landscape, phases, steps_to
from poweropd_lite.report.words import answer, sentences
from poweropd_lite.report.write import gather
from poweropd_lite.run.folder import held_out_by


def test_steps_to_an_accuracy_by_hand(tmp_path):
    slow = planted(tmp_path / "slow", {0: 0.25, 50: 0.5, 100: 0.75})
    fast = planted(tmp_path / "fast", {0: 0.25, 50: 0.75, 100: 0.625})
    never = planted(tmp_path / "never", {0: 0.25, 100: 0.375})
    found = group_runs(read_runs([slow, fast, never]))  # one setting and seed thrice: three curves, as given
    assert steps_to(found, found[0]) == {
        "baseline": "slow",
        "levels": [0.5, 0.75],
        "steps": {"slow": [50.0, 100.0], "fast": [25.0, 50.0], "never": [None, None]},
    }
    assert first_step_at({"step": [0, 10], "avg": [0.5, 0.9]}, 0.4) == 0.0
    table = {row["name"]: row for row in gather(found, found[0], None)["table"]}
    assert table["steps to Avg@8 75.0%"]["values"] == [100.0, 50.0, None]
    assert table["steps to Avg@8 75.0%"]["differences"] == [None, None, None]  # of a curve, not of a seed
    assert table["Avg@8 at the end"]["values"] == [0.75, 0.625, 0.375]
    assert table["Avg@8 at the end"]["differences"] == [None, -0.125, -0.375]


def test_shares_of_the_teachers_accuracy_by_hand(tmp_path):
    runs = read_runs([planted(tmp_path / "run", {0: 0.3, 100: 0.75})])
    (group,) = group_runs(runs)
    table = {row["name"]: row["values"] for row in gather([group], group, read_reference("90%", runs))["table"]}
    assert table["share of the teacher's accuracy"] == [pytest.approx(0.75 / 0.9)]
    assert table["share of the gap to the teacher closed"] == [pytest.approx(0.45 / 0.6)]


def test_no_share_of_a_teacher_that_may_be_no_better_than_its_student_was(tmp_path):
    """0.9% (0.0 to 2.6) over a student of 0.8%: 1.2% is no 133% of it. The picture's axis goes as far as there is something."""
    runs = read_runs([planted(tmp_path / "run", {0: 0.008, 100: 0.012})])
    (group,) = group_runs(runs)
    mean = {"avg@8": 0.009, "avg@8_interval": [0.0, 0.026]}
    results = {"n": 8, "mean": mean, "benchmarks": {"bundled": {"problems": 256}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    teacher = read_reference(str(tmp_path), runs)
    numbers = gather([group], group, teacher)
    assert not any("share" in row["name"] for row in numbers["table"])
    first, second, third = sentences([group], teacher)
    assert "0.8% -> 1.2% (" in first and "of the teacher's" not in first
    assert second.startswith("Teacher: 0.9% (95%: 0.0 to 2.6), Avg@8 on 256 of bundled")
    assert (
        third
        == "The teacher is not known to do these problems better than the student did before training: shares of it are left out."
    )
    axes = {p.file: p.figure for p in pictures([group], numbers, teacher)}["accuracy"].axes[0]
    assert 2.6 < axes.get_ylim()[1] < 3  # as high as the teacher may be
    mean["avg@8_interval"] = [0.0085, 0.026]  # above what the student began with
    (tmp_path / "results.json").write_text(json.dumps(results))
    better = read_reference(str(tmp_path), runs)
    assert "133.3% of the teacher's" in sentences([group], better)[0] and len(sentences([group], better)) == 2
    # One of two that began above its least: no share of either, in the sentences and in the table.
    both = group_runs(read_runs([runs[0].path, planted(tmp_path / "far", {0: 0.009, 100: 0.02}, alpha=1)]))
    said, rows = sentences(both, better), gather(both, both[0], better)["table"]
    assert len(said) == 4 and not any("of the teacher's" in line for line in said[:2])
    assert not any("share" in row["name"] for row in rows)


def test_a_density_counts_what_lies_outside_of_it():
    """Ten tokens: two in the bin from 0 to 0.5, four in the next, three below, one above. 2 / (10 * 0.5) = 0.4."""
    line = {"step": 1, "low": 0.0, "high": 1.0, "counts": [2, 4], "below": 3, "above": 1, "not_finite": 5}
    found = density(line)
    assert found["density"] == [0.4, 0.8] and found["edges"] == [0.0, 0.5, 1.0]
    assert (found["tokens"], found["below"], found["above"], found["not_finite"]) == (10, 3, 1, 5)


def test_runs_evaluated_differently_are_said_not_to_compare(tmp_path):
    one = planted(tmp_path / "a" / "run", {0: 0.25, 100: 0.5})
    two = planted(tmp_path / "b" / "run", {0: 0.5, 100: 0.75}, eval_problems=32)
    found = read_runs([one, two])
    assert [run.name for run in found] == ["a/run", "b/run"]
    said = "Evaluated differently (eval_problems): the accuracies of these runs do not compare."
    groups = group_runs(found)
    assert [group.label for group in groups] == ["eval_problems 32", "eval_problems 256"]  # nothing else differs
    assert answer(groups, groups[0]) == [said] and answer(groups[:1], groups[0]) == []
    accuracy_picture = next(pictures(groups, gather(groups, groups[0], None), None))
    assert "No line for the base" in accuracy_picture.caption
    results = {"n": 8, "mean": {"avg@8": 0.7}, "benchmarks": {"bundled": {"problems": 256}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "of other problems or samples" in read_reference(str(tmp_path), found).source
    assert "other" not in read_reference(str(tmp_path), found[:1]).source
    results["benchmarks"]["bundled"]["problems"] = 32  # a teacher of fewer problems than the run
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "of other problems" in read_reference(str(tmp_path), found[:1]).source
    results["benchmarks"]["bundled"]["whole"] = True  # there are no more
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "other" not in read_reference(str(tmp_path), found[:1]).source
    other = group_runs(read_runs([one, planted(tmp_path / "c", {0: 0.25}, eval_batch_size=4)]))
    assert not any("differently" in sentence for sentence in [*answer(other, other[0]), *sentences(other, None)])


def test_damaged_files_are_named_with_their_line(tmp_path):
    """What no run writes: exit code 2 by a UserError that says where, whatever the damage."""
    folder = planted(tmp_path / "run", {0: 0.5}, [(1, {"optim/grad_norm": 0.5})])
    whole = (folder / "metrics.jsonl").read_bytes()
    for file, damage, words in (
        ("metrics.jsonl", whole.replace(b"0.5", b"null"), "line 1 of .*metrics.jsonl has no usable eval/avg@8"),
        ("metrics.jsonl", whole.replace(b"time/step", b"time"), "line 2 of .*metrics.jsonl has no usable time/step"),
        ("metrics.jsonl", b"not json\n" + whole, "line 1 of .*metrics.jsonl is not a JSON object"),
        ("metrics.jsonl", b"\xff\n" + whole, "line 1 of .*metrics.jsonl is not a JSON object"),
        ("tokens.jsonl", b'{"step": 1}\n', "line 1 of .*tokens.jsonl has no usable low"),
        ("samples.jsonl", b'{"step": 1, "kind": "eval"}\n', "line 1 of .*samples.jsonl has no usable finish"),
        ("summary.json", b"[1]", "summary.json is no JSON object"),
    ):
        (folder / file).write_bytes(damage)
        with pytest.raises(UserError, match=words):
            report(folder)
        (folder / file).unlink()
        (folder / "metrics.jsonl").write_bytes(whole)
    assert not (folder / "report").exists()
    (folder / "metrics.jsonl").write_bytes(whole.replace(b"1.0", b'"nan"'))  # not finite is left out, not refused
    assert json.loads((report(folder) / "report.json").read_text())["accuracy"]["run"]["step"] == []


def test_long_runs_keep_extremes_and_means_of_spans(tmp_path):
    steps = [(s, {"reward/min": -s, "reward/max": s, "reward/p05": s, "optim/grad_norm": s}) for s in range(1, 1001)]
    (run,) = read_runs([planted(tmp_path / "run", {0: 0.3}, steps)])
    found = by_step([run], "reward/min", "reward/p05", "reward/max", "optim/grad_norm")  # spans of three steps
    assert found["step"][:2] == [3, 6] and found["step"][-1] == 1000 and len(found["step"]) == 334
    assert found["reward/min"][:2] == [-3, -6] and found["reward/max"][:2] == [3, 6]
    assert found["reward/p05"][:2] == [2, 5] and found["optim/grad_norm"][-1] == 1000


def test_time_by_phase_by_hand(tmp_path):
    steps = [(s, {"time/rollout": 0.2, "time/teacher": 0.3, "time/student": 0.4}) for s in (1, 2)]  # of one second each
    (run,) = read_runs([planted(tmp_path / "run", {0: 0.3, 2: 0.4}, steps)])
    expected = {"rollout": 0.4, "teacher": 0.6, "student": 0.8, "guard": 0, "optimizer": 0, "other": 0.2, "evaluate": 4}
    assert phases([run]) == pytest.approx(expected)


def test_landscape_by_hand():
    found = landscape([1.0, 10.0], points=3)
    assert found["q"] == pytest.approx([0.0001, 0.5, 0.9999])
    assert found["size"]["power 1"][2][0] == 0.9998  # p 0.9999, q 0.0001
    assert found["size"]["log_ratio"][2][0] == pytest.approx(math.log(9999), rel=1e-3)
    assert found["size"]["power 10"][1][2] == pytest.approx(0.9999**10 - 0.5**10, rel=1e-3)


def test_a_text_of_the_model_is_no_markup():
    sample = {"tokens": ["<script>", "a\n", "b", "<|end|>"], "rewards": [1.0, -0.5, 0.0]}
    assert coloured(sample, 1.0) == (
        "<span class='p20' title='+1'>&lt;script&gt;</span>"
        "<span class='m10 minus' title='-0.5'>a\u21b5\n</span>"
        "<span class='p0' title='+0'>b</span>"
        "<span class='none'>&lt;|end|&gt;</span>"
    )
    assert ".p20 { background: rgba(0,114,178,0.75) }" in STYLE and ".m10 { background: rgba(213,94,0,0.38) }" in STYLE


def test_of_a_long_completion_its_ends_are_shown_and_the_rest_counted():
    tokens = [f"t{i}," for i in range(4096)]
    shown = re.sub("<[^>]*>", "", coloured({"tokens": tokens, "rewards": [0.1] * 4096}, 1.0))
    assert shown == "".join(tokens[:400]) + " ... 3,596 more ... " + "".join(tokens[-100:])
    assert (
        len(coloured({"tokens": tokens, "rewards": [-1.0] * 4096}, 1.0)) < 30_000
    )  # four of them a run, of eight runs


def test_a_run_that_goes_on_and_one_of_before(tmp_path):
    """A last line half written, no tokens.jsonl, no summary, a step whose numbers are not finite."""
    norms = {1: 0.5, 2: "nan"}
    steps = [(s, {"optim/grad_norm": norm, "optim/skipped_total": s - 1}) for s, norm in norms.items()]
    folder = planted(tmp_path / "run", {0: 0.25}, steps)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tok')
    assert report(folder, say=print) == folder / "report"
    numbers = json.loads((folder / "report" / "report.json").read_text())
    assert numbers["gradient"]["run"] == {"step": [1], "optim/grad_norm": [0.5]}
    table = {row["name"]: row["values"] for row in numbers["table"]}
    assert table["steps taken"] == [2] and table["finished"] == ["no"] and table["dropped steps"] == [1]
    page = (folder / "report" / "index.html").read_text()
    assert "Avg@8 25.0% at step 0; it kept no rewards by token (made by an earlier version)." in page


def test_odd_names_and_other_sample_counts_stand_side_by_side(tmp_path):
    """A name that matplotlib would take for a formula or leave out of the legend; Avg@8 and Avg@2 are two rows."""
    one = planted(tmp_path / "_a$^$<b>", {0: 0.25, 100: 0.5}, [(1, {"optim/grad_norm": 0.5})])
    two = planted(tmp_path / "two", {}, [(1, {"optim/grad_norm": 0.25})], eval_samples=2)
    results = {"n": 4, "benchmarks": {"gsm8k": {"avg@4": 0.375}}}
    for step, avg in ((50, 0.1), (100, 0.375)):
        (two / "eval" / f"step_{step:06}").mkdir(parents=True)
        results["benchmarks"]["gsm8k"]["avg@4"] = avg
        (two / "eval" / f"step_{step:06}" / "results.json").write_text(json.dumps(results))
    folder = report([one, two], output=tmp_path / "out")
    rows = {row["name"]: row["values"] for row in json.loads((folder / "report.json").read_text())["table"]}
    assert rows["Avg@8 at the end"] == [None, 0.5]  # sorted by eval_samples: 2, then 8
    # The run is at step 1: what evaluate found elsewhere says where.
    assert rows["Avg@4 on gsm8k by evaluate at step 100"] == [0.375, None]
    page = (folder / "index.html").read_text()
    never = "No accuracy by step: scored after training alone"
    assert never not in page and sentences(group_runs(read_runs([two])), None)[-1].startswith(never)
    assert "<th>eval_samples 2</th>" in page and "two (eval_samples 2), 1 of 100 steps" in page
    folder = report([one, two], output=tmp_path / "out", labels=["two", "_a$^$<b>"])
    assert "<th>_a$^$&lt;b&gt;</th>" in (folder / "index.html").read_text()
    found = group_runs(read_runs([one, two]), ["two", "_a$^$<b>"])
    drawn = {picture.file: picture.figure for picture in pictures(found, gather(found, found[0], None), None)}
    assert [t.get_text() for t in drawn["gradient"].legends[0].get_texts()] == ["two", r" _a\$^\$<b>", "clipped at 1"]


def test_a_teacher_that_is_never_right_has_no_shares(tmp_path):
    run = planted(tmp_path / "run", {0: 0.25, 100: 0.75})
    results = {"n": 8, "mean": {"avg@8": 0.0}, "benchmarks": {"bundled": {"problems": 256}}}
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "results.json").write_text(json.dumps(results))
    said = []
    folder = report(run, teacher=tmp_path / "teacher", say=said.append)
    assert said[:2] == [
        "run (power 10), 0 of 100 steps: Avg@8 25.0% -> 75.0% (step 0 -> 100); it kept no rewards by token (made by an earlier version).",
        f"Teacher: 0.0%, Avg@8 on 256 of bundled ({tmp_path}/teacher).",
    ]
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["teacher"]["accuracy"] == 0.0
    assert "share of the teacher's accuracy" not in {row["name"] for row in numbers["table"]}


def test_a_teacher_is_compared_by_the_names_that_its_results_have(tmp_path):
    """All seven by one word, a set of the hub, a file that is gone; prompts kept out are as many as hold_out says."""
    seven = ("gsm8k", "math500", "amc23", "aime24", "aime25", "minerva", "olympiadbench")
    cases = (
        ({"eval_benchmarks": "all"}, dict.fromkeys(seven, 256)),
        ({"eval_benchmarks": "HuggingFaceH4/MATH-500, math-ai/aime24:main:test"}, {"MATH-500": 256, "aime24": 256}),
        ({"eval_benchmarks": "gone/my-test.jsonl"}, {"my-test": 256}),
        ({"eval_benchmarks": None, "hold_out": 300}, {"held-out": 300}),
    )
    for i, (settings, counts) in enumerate(cases):
        found = read_runs([planted(tmp_path / str(i), {0: 0.5}, **settings)])
        rows = {name: {"problems": count} for name, count in counts.items()}
        if "hold_out" in settings:
            (found[0].path / "inputs.json").write_text('{"fed": {"prompts": {"sha256": "abc"}}}')
            rows["held-out"]["of"] = held_out_by(found[0].path, found[0].config)
        (tmp_path / "results.json").write_text(json.dumps({"n": 8, "mean": {"avg@8": 0.7}, "benchmarks": rows}))
        of = ", ".join(f"{count} of {name}" for name, count in counts.items())
        assert read_reference(str(tmp_path), found).source == f"Avg@8 on {of} ({tmp_path})"
    found = read_runs([planted(tmp_path / "both", {0: 0.5}, hold_out=300)])
    both = "is of held-out, and .*both was evaluated on bundled, held-out; evaluate the teacher on the same: --model TEACHER --problems-of"
    with pytest.raises(UserError, match=both):
        read_reference(str(tmp_path), found)


def test_a_teacher_of_other_benchmarks_is_refused(tmp_path):
    found = read_runs([planted(tmp_path / "run", {0: 0.5})])
    results = {"n": 8, "mean": {"avg@8": 0.7}, "benchmarks": {"gsm8k": {"problems": 1319}}}
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "results.json").write_text(json.dumps(results))
    with pytest.raises(
        UserError, match="is of gsm8k, and .*run was evaluated on bundled; evaluate the teacher on the same"
    ):
        read_reference(str(tmp_path / "teacher"), found)


def test_control_and_bidi_characters_of_a_completion_are_left_out():
    sample = {"tokens": ["a\x1b[2J", "\u202eb", "c\x00\n"], "rewards": [0.5, -0.5, 0.0]}
    page = coloured(sample, 1.0)
    assert re.sub("<[^>]*>", "", page) == "a[2Jbc\u21b5\n"
