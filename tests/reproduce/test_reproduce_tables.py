"""The reproduce command's numbers: intervals against mpmath, tables and estimates by hand, what is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import mpmath
import pytest
from planted_queue import plant, planted, rows_of

from poweropd_lite.base.config import marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.base.intervals import stat, t_quantile
from poweropd_lite.base.progress import clock
from poweropd_lite.reproduce.cost import make_costs
from poweropd_lite.reproduce.forecast import check_fit, seconds_left
from poweropd_lite.reproduce.grid import (
    DONE,
    FAILED,
    RUNNING,
    WAITING,
    in_order,
    load_pairs,
    model_flags,
    model_tasks,
    run_config,
)
from poweropd_lite.reproduce.rows import make_blocks
from poweropd_lite.reproduce.settings import INSTEAD, REWARDS, split_settings
from poweropd_lite.reproduce.settle import set_right, settle
from poweropd_lite.reproduce.state import Forecast, read_queue, read_results
from poweropd_lite.reproduce.tables import score_sheets, write_tables
from poweropd_lite.rewards.table import REWARDS as TABLE


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 101])
def test_t_against_the_incomplete_beta_function(degrees):
    """P(|T| <= t) = 1 - I_x(v/2, 1/2), x = v / (v + t^2): mpmath's, to thirty digits, at our t."""
    with mpmath.workdps(30):
        t = mpmath.mpf(t_quantile(degrees))
        x = degrees / (degrees + t**2)
        inside = 1 - mpmath.betainc(mpmath.mpf(degrees) / 2, 0.5, 0, x, regularized=True)
        assert abs(inside - mpmath.mpf("0.95")) < 1e-13


def test_intervals_by_hand():
    """Table values of t: 12.706 for two seeds, 4.303 for three. Of 1, 2, 6: mean 3, sd sqrt(14/2), half 4.303 sqrt(7/3)."""
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4) and t_quantile(2) == pytest.approx(4.30265, abs=1e-5)
    found = stat({0: 1.0, 1: 2.0, 2: 6.0})
    assert (found.mean, found.sd) == (3.0, pytest.approx(7**0.5))
    assert found.half == pytest.approx(4.30265 * (7 / 3) ** 0.5, rel=1e-5)
    assert stat({}) is None and stat({4: 2.0}).half is None
    assert stat({0: 5.0, 1: 5.0}).half == 0.0


ALL_SEVEN = ("gsm8k", "math500", "amc23", "aime24", "aime25", "minerva", "olympiadbench")


def test_the_papers_tables_with_its_values_in_the_right_cells(tmp_path):
    """Planted: 0.6B <- 4B at alpha 10 over three seeds with means 24, 25, 29: 26 ± 4.303 sqrt(7/3) = 6.57."""
    queue = planted(tmp_path, pairs="qwen3-0.6b-4b,qwen3-1.7b-8b", rewards="power,tanh,full_kl", alphas="10,7", seeds="0,1,2", benchmarks="all")  # fmt: skip
    for seed, mean in enumerate((0.24, 0.25, 0.29)):
        row = {name: (0.1, 0.2, 500 + seed) for name in ALL_SEVEN} | {"gsm8k": (0.6 + seed / 100, 0.8, 300)}
        name = f"qwen3-0.6b-4b-power10-plain-seed{seed}"
        plant(
            queue,
            name,
            row,
            (mean, 0.4, 2000),
            peak=9.5 - seed,
            steps=[(0.1 + seed, 8.0), (0.2, 10.0 + seed), ("nan", 9.0)],
        )
    plant(queue, "teacher-qwen3-4b-4bit", {name: (0.5, 0.7, 900) for name in ALL_SEVEN}, (0.5, 0.7, 900))
    failed = queue.tasks["qwen3-0.6b-4b-tanh-plain-seed0"]
    failed.state, failed.message = FAILED, "train ended with code 2: no room"
    files = write_tables(queue)
    assert files == ("tables.md", "tables.csv", "cost.md", "cost.csv", "tables.html")
    table = {(r["pair"], r["row"], r["benchmark"], r["measure"]): r for r in rows_of(tmp_path / "tables.csv")}
    ours = table["qwen3-0.6b-4b", "power 10", "mean", "avg"]
    half = 4.302652729911275 * (7 / 3) ** 0.5  # by the table of t, and sd^2 = (4 + 1 + 9) / 2
    assert [float(ours[key]) for key in ("n", "mean", "sd", "low", "high")] == pytest.approx(
        [3, 26, 7**0.5, 26 - half, 26 + half]
    )
    assert ours["values"] == "0=24;1=25;2=29"
    # The paper's cells, as in its Tables 2 and 3: 25.20 / 39.68 / 2172 for alpha 10; 21.06 for tanh; 22.91 for the full vocabulary.
    paper = {
        measure: table["qwen3-0.6b-4b", "power 10", "mean", measure]["paper"]
        for measure in ("avg", "pass", "length", "stop")
    }
    assert paper == {"avg": "25.2", "pass": "39.68", "length": "2172", "stop": ""}
    assert table["qwen3-0.6b-4b", "tanh", "mean", "avg"]["paper"] == "21.06"
    assert table["qwen3-0.6b-4b", "full_kl", "gsm8k", "pass"]["paper"] == "87.08"
    assert table["qwen3-0.6b-4b", "power 7", "mean", "avg"]["paper"] == ""  # the nearest alpha is another run
    assert float(table["qwen3-0.6b-4b", "power 10", "", "teacher_share"]["mean"]) == pytest.approx(52.0)
    assert float(table["qwen3-0.6b-4b", "power 10", "", "largest_grad_norm"]["mean"]) == pytest.approx(
        (0.2 + 1.1 + 2.1) / 3
    )
    text = (tmp_path / "tables.md").read_text()
    assert "## Table 2: Qwen3-0.6B-Base <- Qwen3-4B (4-bit), no truncation" in text
    assert "## Table 3: Qwen3-1.7B-Base <- Qwen3-8B (4-bit), no truncation" in text
    lines = [line.strip("| ").split(" | ") for line in text.split("## Table 3")[0].splitlines() if line.startswith("|")]
    at = lines[0].index("mean")
    shown = {line[0]: (line, lines[i + 1]) for i, line in enumerate(lines[:-1])}
    measured, beside = shown["`power 10`"]
    assert measured[at] == "26.00 ± 6.57 / 40.00 ± 0.00 / 2000 ± 0" and beside[0] == "paper"
    assert beside[at] == "25.20 / 39.68 / 2172" and measured[-1] == "52.0 ± 13.1%"
    assert measured[1].startswith("61.00 ± 2.48 / 80.00")  # GSM8K: 60, 61, 62: sd 1, 4.303 / sqrt 3
    assert shown["`power 7`"][0][at] == "not run yet" and shown["`power 7`"][1][at] == "-"
    assert "Failed: qwen3-0.6b-4b-tanh-plain-seed0: train ended with code 2: no room" in text
    assert "Not run yet: 8 of 12 runs." in text  # of 0.6B <- 4B: tanh has two left, power 7 and full_kl three each
    # Table 4: medians of 8, 10, 9, 8, 11, 9, 8, 12, 9.
    cost = {r["reward"]: r for r in rows_of(tmp_path / "cost.csv")}["power"]
    assert float(cost["seconds_median"]) == 9.0 and float(cost["peak_gib"]) == 11.5 and cost["steps"] == "9"
    assert (cost["seconds_p05"], cost["seconds_p95"]) == ("8", "12")  # of 8 8 8 9 9 9 10 11 12
    assert [cost[key] for key in ("paper_tflops", "paper_seconds", "paper_gib")] == ["346.6", "9.03", "60.72"]
    assert "346.6 TFLOPs / 9.03 s / 60.72 GiB (batch 8)" in (tmp_path / "cost.md").read_text()


def test_a_mean_of_other_benchmarks_has_no_paper_value_beside(tmp_path):
    queue = planted(tmp_path, pairs="qwen3-1.7b-4b", rewards="log_ratio", seeds="0", benchmarks="gsm8k,aime24")
    plant(
        queue,
        "qwen3-1.7b-4b-log_ratio-plain-seed0",
        {"gsm8k": (0.7, 0.9, 400), "aime24": (0.1, 0.2, 3000)},
        (0.4, 0.55, 1700),
    )
    write_tables(queue)
    table = {(r["benchmark"], r["measure"]): r for r in rows_of(tmp_path / "tables.csv") if r["row"] == "log_ratio"}
    assert (
        table["gsm8k", "avg"]["paper"] and table["mean", "avg"]["mean"] == "40" and table["mean", "avg"]["paper"] == ""
    )


def test_the_table_of_sampling_columns(tmp_path):
    """full_kl has no score: one run stands in both truncated columns. 80, 90: mean 85, half 12.706 * 7.071 / sqrt 2 = 63.5."""
    queue = planted(tmp_path, preset="tiny", rewards="clip,full_kl", seeds="0,1")
    names = set(queue.tasks)
    assert {name for name in names if "full_kl" in name} == {f"bundled-full_kl-{c}-seed{s}" for c in ("plain", "truncated") for s in (0, 1)}  # fmt: skip
    assert len(names) == 4 + 6 + 2
    for seed, avg in enumerate((0.8, 0.9)):
        plant(
            queue, f"bundled-clip-plain-seed{seed}", {"bundled": (avg, 1.0, 40)}, steps=[(0.3, 1.0), (0.2 + seed, 1.0)]
        )
    plant(queue, "bundled-full_kl-truncated-seed1", {"bundled": (0.02, 0.1, 112)}, steps=[(1.5, 1.0)])
    write_tables(queue)
    text = (tmp_path / "tables.md").read_text().split("what sampling does")[1]
    assert "| reward | no truncation | truncated, score full | truncated, score sampled |" in text
    assert "| `clip` | 85.0 ± 63.5 / 75% / 1.20 | not run yet | not run yet |" in text
    assert "| `full_kl` | not run yet | 2.0 / 75% / 1.50 (1 of 2 seeds) | 2.0 / 75% / 1.50 (1 of 2 seeds) |" in text


# What is asked for


def test_the_presets_grids():
    """paper: 4 pairs x (5 rewards + 8 alphas) x 3 seeds; two students and two teachers. tiny: 6 sampled rewards x 3 x 3, full_kl x 2 x 3."""
    for preset, runs, models in (("paper", 156, 4), ("tiny", 60, 2), ("smoke", 2, 2)):
        asked, training, given = split_settings({"preset": preset})
        queue = settle(asked, training, given, None, Path("nowhere"))
        roles = [task.role for task in queue.tasks.values()]
        assert (roles.count("run"), len(roles) - roles.count("run")) == (runs, models)
    order = in_order(queue.tasks.values())
    assert [task.name for task in order[:3]] == ["bundled-power10-plain-seed0", "bundled-student", "bundled-teacher"]
    pairs = load_pairs(["all"], {})
    assert {(t.name, tuple(t.pairs)) for t in model_tasks(pairs)} == {
        ("base-qwen3-0.6b-base", ("qwen3-0.6b-4b", "qwen3-0.6b-8b")),
        ("base-qwen3-1.7b-base", ("qwen3-1.7b-4b", "qwen3-1.7b-8b")),
        ("teacher-qwen3-4b-4bit", ("qwen3-0.6b-4b", "qwen3-1.7b-4b")),
        ("teacher-qwen3-8b-4bit", ("qwen3-0.6b-8b", "qwen3-1.7b-8b")),
    }
    assert pairs["qwen3-0.6b-4b"].eval_benchmarks is None and pairs["qwen3-0.6b-4b"].eval_every == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"preset": "smoke", "reward": "tanh"}, "--reward is set by the grid, a run at a time; leave it out, and type --rewards"),
        ({"preset": "smoke", "alpha": 3}, "type --alphas"),
        ({"preset": "smoke", "seed": 3}, "type --seeds"),
        ({"preset": "smoke", "config": "bundled"}, "type --pairs"),
        ({"preset": "smoke", "top_k": 5}, "type --columns truncated-full"),
        ({"preset": "smok"}, "found 'smok', but it should be 'paper', 'tiny', 'lab' or 'smoke'"),
        ({"preset": "smoke", "rewards": "power10"}, "--rewards power --alphas 1,10"),
        ({"preset": "smoke", "rewards": "tanh", "alphas": "3"}, "add power, or leave them out"),
        ({"preset": "smoke", "alphas": "0"}, "alphas: found '0', but it should be greater than 0"),
        ({"preset": "smoke", "seeds": "-1"}, "seeds: found '-1', but it should be greater than or equal to 0"),
        ({"preset": "smoke", "columns": "truncated"}, "no column named 'truncated'"),
        ({"preset": "smoke", "benchmarks": "mathh"}, "no benchmark named 'mathh'"),
        ({"preset": "smoke", "stepps": 3}, "unknown setting 'stepps'"),
        ({"preset": "smoke", "stop_mode": "relabel"}, "stop_mode relabel"),
        ({"tables_only": True, "output": "x", "n": 3}, "--n means nothing there"),
        ({"rewards": "tanh"}, "out holds no queue to go on with; type --preset smoke"),
        ({"preset": "smoke", "alphas": "1,1.0000001"}, "two of them are 1 when written with six digits"),
        ({"pairs": "bundled,bundled"}, None),
        ({"pairs": "nowhere.yaml"}, "no config file at nowhere.yaml"),
        ({"preset": "smoke", "gpu": "24"}, "type --dry-run with it"),
    ],
)  # fmt: skip
def test_what_can_not_be_asked_for(settings, words, tmp_path):
    def ask():
        return settle(*split_settings(settings), None, tmp_path / "out")

    if words is None:  # a name typed twice is one pair
        assert list(ask().pairs) == ["bundled"]
        return
    with pytest.raises(UserError) as error:
        ask()
    assert words in str(error.value)


def test_a_pair_with_data_of_its_own_is_not_scored_on_the_papers_benchmarks_unasked(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    (tmp_path / "mine.yaml").write_text(f"student: a\nteacher: b\ndata: {tmp_path / 'my.jsonl'}\n")

    def ask(**settings):
        settings = {"pairs": str(tmp_path / "mine.yaml"), "rewards": "tanh"} | settings
        return settle(*split_settings(settings), None, tmp_path / "out").scoring["benchmarks"]

    with pytest.raises(UserError, match="mine trains on data of its own.* type --benchmarks with a file"):
        ask()
    with pytest.raises(UserError, match="mine trains on data of its own"):
        ask(hold_out="1")
    assert ask(benchmarks="all") == "all"
    assert ask(benchmarks=str(tmp_path / "my.jsonl")) == str(tmp_path / "my.jsonl")


def test_pairs_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("student: bundled\nteacher: bundled\ndata: bundled\nalpha: 3\n")
    with pytest.raises(UserError, match="sets alpha, which the grid sets"):
        load_pairs([str(file)], {})
    file.write_text("lr: 1.0e-3\n")
    with pytest.raises(UserError, match="names no student and no teacher"):
        load_pairs([str(file)], {})
    file.write_text("student: bundled\nteacher: bundled\ndata: bundled\nlr: 1.0e-3\n")
    assert load_pairs(["bundled", str(file)], {"steps": "7"})["mine"].steps == 7
    file.write_text("student: bundled\nteacher: bundled\ntemplate_kwargs: {effort: low}\n")
    assert """--template-kwargs={"effort": "low"}""" in model_flags(load_pairs([str(file)], {})["mine"], "base")
    file.write_text("student: bundled\nteacher: self\nteacher_prompt: '{prompt} {answer}'\n")
    with pytest.raises(UserError, match="the student's own base, and a reproduction scores the teacher's own answers"):
        load_pairs([str(file)], {})


def test_a_pair_that_does_not_fit_is_refused_before_anything_starts():
    task = settle(*split_settings({"preset": "smoke"}), None, Path("nowhere")).tasks["bundled-power10-plain-seed0"]
    made = Forecast("a card", 30 * 2**30, 23 * 2**30, False, {"token_budget": 2048}, 1.0, 1.0, None)
    with pytest.raises(UserError, match="needs 30.0 GiB, and 23.0 can be used; it does with --token-budget 2048"):
        check_fit(task, made, 1, "--config bundled")
    made = replace(made, needed_bytes=10 * 2**30, fits=True, changes={})
    check_fit(task, made, 2, "")
    with pytest.raises(UserError, match="need 30.0 GiB by plan, and a card has 23.0; type --jobs 2"):
        check_fit(task, made, 3, "")


def test_the_estimate_by_hand(tmp_path):
    """Two runs and two models: 100 steps of 2 s and 50 s an evaluation by plan; then means of what is finished."""
    queue = planted(tmp_path, pairs="bundled", rewards="clip,tanh", seeds="0", steps=100)
    assert seconds_left(queue, {}) is None
    # Of a machine that plan does not know: the base was scored in 20 s, and a run is at its fourth step, half written.
    queue.tasks["bundled-student"].state, queue.tasks["bundled-student"].seconds = DONE, {"evaluate": 20.0}
    first = queue.tasks["bundled-clip-plain-seed0"]
    assert seconds_left(queue, {}) is None
    first.state = RUNNING
    queue.run_folder(first).mkdir(parents=True)
    step = '{"step": 1, "tokens/loss": 9, "time/step": %s, "memory/peak_gib": 1}\n'
    (queue.run_folder(first) / "metrics.jsonl").write_text("".join(step % s for s in (9, 3, 2)) + '{"step": 4, "tok')
    # 26 of its 40 s went by before its steps; 100 steps take 3 s each, and the other run the same.
    assert seconds_left(queue, {first.name: 40.0}) == 326 - 40 + 326 + 3 * 20
    first.state = queue.tasks["bundled-student"].state = WAITING
    queue.tasks["bundled-student"].seconds = {}
    queue.forecasts = {"bundled": {"sampled": Forecast("a card", 1, 2, True, {}, 1.0, 1.0, 2.0)}}
    assert seconds_left(queue, {}) is None  # a card of which plan knows the speed, but not yet of an evaluation
    queue.forecasts = {"bundled": {"sampled": Forecast("a card", 1, 2, True, {}, 1.0, 1.0, 2.0, 50.0)}}
    assert seconds_left(queue, {}) == 2 * 200 + 4 * 50
    clip, tanh = (queue.tasks[f"bundled-{reward}-plain-seed0"] for reward in ("clip", "tanh"))
    assert seconds_left(queue, {clip.name: 30.0}) == 170 + 200 + 4 * 50
    # Trained in 250 s, and 10 s into its evaluation: the other one takes as long, and evaluations are still as planned.
    clip.stage, clip.seconds = "evaluate", {"train": 250.0}
    assert seconds_left(queue, {clip.name: 10.0}) == 250 + 3 * 50 + 40
    # Scored in 20 s, as then the other three; of the other's training 100 s went by before a stop, and 1,000 since.
    clip.state, clip.seconds = DONE, {"train": 250.0, "evaluate": 20.0}
    tanh.seconds = {"train": 100.0}
    assert seconds_left(queue, {}) == 150 + 3 * 20
    assert seconds_left(queue, {tanh.name: 1000.0}) == 3 * 20  # longer than the mean: it may end at any time
    assert seconds_left(queue, {}, planned=True) == 100 + 3 * 50  # of another machine than that of the finished ones
    clip.pairs = ["other"]  # whose runs tell nothing of this pair's
    assert seconds_left(queue, {}) == 100 + 3 * 50
    clip.pairs = ["bundled"]
    queue.tasks["bundled-teacher"].state = FAILED
    assert seconds_left(queue, {}) == 150 + 2 * 20


def test_every_setting_of_the_grid_has_its_own_words():
    own = {"output"}  # a flag of both: the grid's is the queue's folder
    assert set(INSTEAD) == marked("grid") - own | {"config", "student", "teacher"}
    assert set(REWARDS) == set(TABLE)


def test_the_laboratorys_grid_varies_one_axis_at_a_time_and_is_read_back(tmp_path):
    (tmp_path / "q").mkdir()
    planted(tmp_path / "q", preset="lab")
    queue = read_queue(tmp_path / "q")
    runs = [task for task in queue.tasks.values() if task.role == "run"]
    labels = [task.label for task in runs if task.seed == 0]
    assert len(runs) == 96 and len(set(labels)) == len(labels) == 32
    alone = {f"{name} 10" if "alpha" in TABLE[name].settings else name for name in TABLE}
    assert alone <= set(labels)
    beside = [f"keep {name}" for name in ("dial", "entropy", "abs", "random")]
    beside += ["weight remaining", "weight horizon", "baseline own"]
    assert set(labels) - alone == {f"{name} {more}" for name in ("log_ratio", "power 10") for more in beside}
    for task in runs:
        config = run_config(queue.pairs[task.pair], task)
        assert [config.keep != "all", config.weight != "none", config.baseline != "none"].count(True) == (
            task.label not in alone
        )
        assert (config.steps, config.horizon, config.top_k) == (60, 16, 0)


def test_durations_of_days_are_said_in_days():
    assert clock(47 * 3600 + 59 * 60 + 8) == "47:59:08" and clock(1699 * 3600 + 48 * 60 + 54) == "70 days 19 h"


def test_a_damaged_state_file_is_refused(tmp_path):
    planted(tmp_path / "q", preset="smoke") if (tmp_path / "q").mkdir() is None else None
    file = tmp_path / "q/queue.json"
    file.write_text(file.read_text()[:200])
    with pytest.raises(UserError, match="can't be read"):
        read_queue(tmp_path / "q")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no queue"):
        read_queue(tmp_path / "other")
    assert read_queue(tmp_path / "new") is None and not os.path.exists(tmp_path / "new")


def test_a_state_file_that_lost_a_part_is_refused(tmp_path):
    """Tables of less than the runs that are there would be written over whole ones."""
    planted(tmp_path, preset="smoke")
    file, name = tmp_path / "queue.json", "bundled-power10-plain-seed0"
    whole = file.read_text()
    assert read_queue(tmp_path) is not None
    for damage in (
        lambda data: data.pop("tasks"),
        lambda data: data["axes"].clear(),
        lambda data: data["scoring"].pop("n"),
        lambda data: data["pairs"]["bundled"].pop("student"),
        lambda data: data["pairs"].clear(),
        lambda data: data["tasks"][name].update(reward="zzz"),
        lambda data: data["tasks"][name].update(column="zzz"),
        lambda data: data["tasks"][name].update(state="zzz"),
    ):
        data = json.loads(whole)
        damage(data)
        file.write_text(json.dumps(data))
        with pytest.raises(UserError, match=r"queue\.json can't be read .*type --output with a new folder"):
            read_queue(tmp_path)


def test_a_seed_whose_results_are_damaged_is_run_again(tmp_path):
    queue = planted(tmp_path, preset="smoke")
    task = queue.tasks["bundled-power10-plain-seed0"]
    plant(queue, task.name, {"bundled": (0.5, 0.6, 40)})
    task.stage = "evaluate"
    write_json(queue.run_folder(task) / "summary.json", {"finished": True, "steps": 10})
    assert set_right(queue, False) == [] and task.state == DONE
    file = queue.scores_folder(task) / "results.json"
    file.write_text(file.read_text()[:20])
    assert set_right(queue, False) == [f"{task.name}: its files are gone or damaged, so it is run again"]
    assert (task.state, task.stage) == ("waiting", "evaluate")


def test_pairs_of_models_with_the_same_names_are_told_apart(tmp_path):
    (tmp_path / "other.yaml").write_text("student: bundled\nteacher: bundled\ndata: bundled\nlr: 1e-4\n")
    queue = planted(tmp_path, pairs=f"bundled,{tmp_path}/other.yaml", rewards="tanh", seeds="0")
    titles = [sheet.title for sheet in score_sheets(queue, make_blocks(queue, read_results(queue)))]
    assert (
        "bundled-student <- bundled-teacher (4-bit), other, no truncation" in titles
        and len(set(titles)) == len(titles) == 4
    )


def test_costs_leave_out_what_is_not_done(tmp_path):
    queue = planted(tmp_path, preset="smoke")
    plant(queue, "bundled-power10-plain-seed0", {"bundled": (0.5, 0.6, 40)}, steps=[(0.1, 1.0), (0.1, 3.0)])
    found = make_costs(queue, read_results(queue).steps)
    assert [(c.reward, c.runs, c.steps, c.seconds_median, c.side_by_side) for c in found] == [("power", 1, 2, 2.0, 1)]
