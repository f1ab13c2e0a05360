"""Runs that differ by seed alone: one curve, in order, named by what differs; means, bands and differences by hand."""

import json
import re
import zlib

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from planted import planted

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.intervals import difference
from poweropd_lite.report import report
from poweropd_lite.report.drawing import LOOKS
from poweropd_lite.report.groups import _order, group_runs, settings, title
from poweropd_lite.report.pictures import pictures
from poweropd_lite.report.read import Reference, read_runs
from poweropd_lite.report.series import density, pooled, positions
from poweropd_lite.report.table import difference_in_words
from poweropd_lite.report.words import answer, sentences
from poweropd_lite.report.write import gather

ENDS = {1: (0.50, 0.52, 0.57), 5: (0.70, 0.74, 0.75), 10: (0.51, 0.53, 0.50)}  # Avg@8 at step 10, by alpha and seed
KEYS = ("reward/min", "reward/p05", "reward/p95", "reward/max", "optim/grad_norm", "rollout/length")


def lines(seed, more=()):
    """Ten steps of made-up metrics, other ones for every seed."""
    random = np.random.default_rng(seed)
    return [(step, {key: float(value) for key, value in zip((*KEYS, *more), random.uniform(0.1, 1, 9), strict=False)}) for step in range(1, 11)]  # fmt: skip


def grid(folder, alphas=(10, 1, 5), seeds=(2, 0, 1), **settings):
    """Runs of every alpha and seed, in this order, and what each wrote."""
    return [
        planted(folder / f"power{alpha}-seed{seed}", {0: 0.25, 10: ENDS[alpha][seed]}, lines(10 * alpha + seed), steps=10, alpha=alpha, seed=seed, **settings)
        for alpha in alphas for seed in seeds
    ]  # fmt: skip


def written(run, key):
    """A metric by step, as float64, straight from the file."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([line[key] for line in found if key in line], dtype=np.float64)


def test_seeds_are_one_curve_with_the_mean_and_the_range_of_what_was_written(tmp_path):
    runs = grid(tmp_path)
    folder = report([*runs, planted(tmp_path / "log_ratio", {0: 0.25, 10: 0.6}, lines(0), steps=10, reward="log_ratio")], output=tmp_path / "out", style="paper", say=lambda _: None)  # fmt: skip
    numbers = json.loads((folder / "report.json").read_text())
    assert [g["label"] for g in numbers["groups"]] == ["power 1", "power 5", "power 10", "log_ratio"]
    assert [g["seeds"] for g in numbers["groups"]] == [[0, 1, 2]] * 3 + [[0]]
    assert numbers["title"] == "power 1, 5, 10 and log_ratio on bundled-student <- bundled-teacher, 1 to 3 seeds"
    for alpha in ENDS:
        label, own = f"power {alpha}", [tmp_path / f"power{alpha}-seed{seed}" for seed in (0, 1, 2)]
        norms = np.stack([written(run, "optim/grad_norm") for run in own])
        found = numbers["gradient"][label]
        assert found["step"] == list(range(1, 11))
        for key, exact in (("", norms.mean(0)), ("_low", norms.min(0)), ("_high", norms.max(0))):
            assert found[f"optim/grad_norm{key}"] == pytest.approx(exact, rel=1e-12)
        band = numbers["reward"][label]
        assert band["reward/min"] == np.stack([written(run, "reward/min") for run in own]).min(0).tolist()
        assert band["reward/max"] == np.stack([written(run, "reward/max") for run in own]).max(0).tolist()
        assert band["reward/p05"] == pytest.approx(np.stack([written(r, "reward/p05") for r in own]).mean(0), rel=1e-12)
        assert numbers["accuracy"][label]["avg"] == pytest.approx([0.25, np.mean(ENDS[alpha])], rel=1e-12)
        assert numbers["accuracy"][label]["avg_high"] == [0.25, max(ENDS[alpha])]
    curve = numbers["by_alpha"]["gradient"]["curves"]["power"]
    medians = [[np.median(written(tmp_path / f"power{a}-seed{s}", "optim/grad_norm")) for s in (0, 1, 2)] for a in ENDS]
    assert curve["alpha"] == [1, 5, 10] and curve["mean"] == pytest.approx(np.mean(medians, 1), rel=1e-12)
    assert curve["low"] == pytest.approx(np.min(medians, 1)) and curve["high"] == pytest.approx(np.max(medians, 1))
    assert numbers["by_alpha"]["end"]["curves"]["power"]["mean"] == pytest.approx([np.mean(v) for v in ENDS.values()])
    assert numbers["by_alpha"]["end"]["levels"] == {"log_ratio": {"mean": 0.6, "low": 0.6, "high": 0.6}}
    page = (folder / "index.html").read_text()
    assert page.index("Accuracy against alpha") < page.index("<h2>In numbers") < page.index("Length by step")
    assert "<small>1 of 3 seeds" not in page and "@media (min-width: 740px)" in page
    # A paper's columns are 3.35 and 6.9 inches, at 72 points: real PDFs, with their fonts inside.
    for name, inches in (("accuracy", 3.35), ("accuracy_alpha", 3.35), ("gradient_alpha", 3.35), ("reward", 6.9), ("landscape", 6.9)):  # fmt: skip
        pdf = (folder / f"{name}.pdf").read_bytes()
        width = float(re.search(rb"/MediaBox \[ 0 0 ([0-9.]+)", pdf)[1])
        assert width == pytest.approx(72 * inches, abs=0.01) and pdf.startswith(b"%PDF-") and b"/FontFile2" in pdf
        text = b"".join(zlib.decompress(s) for s in re.findall(rb"/FlateDecode[^>]*>>\nstream\n(.*?)\nendstream", pdf, re.S) if s[:1] == b"x")  # fmt: skip
        sizes = {float(size) for size in re.findall(rb"/F\d+ ([0-9.]+) Tf", text)}
        assert sizes == {8.0}, (name, sizes)


def test_accuracy_against_alpha_has_its_base_and_room_for_what_differs(tmp_path):
    groups = group_runs(read_runs(grid(tmp_path)))
    numbers = gather(groups, groups[0], None)

    def drawn(base):
        figure = next(d for d in pictures(groups, numbers, None, base=base) if d.file == "accuracy_alpha").figure
        level = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
        return level["base (before training)"], *figure.axes[0].get_ylim()

    base, low, high = drawn(None)  # the runs' own, at step 0
    assert base == 25.0 and 15 < low < 25 and 75 < high < 85  # seeds go up to 75
    numbers["accuracy"] = {}  # they scored nothing: reproduce gives what it scored
    assert drawn(Reference(0.4, "as given"))[0] == 40.0
    assert sentences(groups, None, Reference(0.4, "as given"))[-1] == "Before training: 40.0%, as given."


def test_differences_are_named_beyond_noise_alone(tmp_path):
    """Of 5 from 1, seed by seed: 20, 22, 18 points; mean 20, sd 2, half 4.303 * 2 / sqrt(3) = 4.97.

    Of 10 from 1: 1, 1, -7 points; sd 4.62, half 11.5.
    """
    groups = group_runs(read_runs(grid(tmp_path)))
    base = groups[0]
    said = answer(groups, base)
    assert said[0] == (
        "Avg@8 at the end: power 1 53% \u00b1 9, power 5 73% \u00b1 7 and power 10 51% \u00b1 4. "
        "Against power 1: power 5 +20 \u00b1 5 points. No difference beyond noise between power 1 and power 10 "
        "(noise: \u00b1 11 points). Highest mean: power 5, beyond noise against all others."
    )
    assert "mean:" not in answer(groups, groups[1])[0]  # where it is the baseline, that says it
    nearer = group_runs(read_runs([run.path for group in groups[:2] for run in group.runs] + [
        planted(tmp_path / f"log{seed}", {0: 0.25, 10: avg}, reward="log_ratio", seed=seed, steps=10)
        for seed, avg in enumerate((0.69, 0.76, 0.77))
    ]))  # fmt: skip
    assert answer(nearer, nearer[0])[0].endswith("Highest mean: log_ratio, not to be told from power 5.")
    rows = {row["name"]: row for row in gather(groups, base, None)["table"]}
    end = rows["Avg@8 at the end"]
    assert end["values"] == pytest.approx([0.53, 0.73, 0.5133333333333333])
    assert end["differences"][1:] == pytest.approx([0.2, -0.016666666666666666])
    assert end["noise"][1] == pytest.approx(4.302652729911275 * 0.02 / 3**0.5) and end["noise"][0] is None
    assert sentences(groups, None)[1] == "power 5, 3 seeds, 10 of 10 steps: Avg@8 25.0% -> 73% \u00b1 7; its seeds kept no rewards by token of one step."  # fmt: skip
    one_each = group_runs([group.runs[0] for group in groups])
    assert "Avg@8 at the end: power 1 50.0%, power 5 70.0% and power 10 51.0%. With one seed a setting" in answer(one_each, one_each[0])[0]  # fmt: skip
    pair = " ".join(str(tmp_path / f"power{alpha}-seed0") for alpha in (5, 1))
    assert f"(python -m poweropd_lite.evaluate --compare {pair})" in answer(one_each, one_each[1])[0]
    # Of other seeds than the baseline's, by hand: sd 1 and 2, of 2 and 3; t for one degree of freedom is 12.706.
    a, b = {0: 1.0, 1: 1 + 2**0.5}, {5: 4.0, 6: 6.0, 7: 8.0}
    assert difference(b, a) == (pytest.approx(5 - 0.5**0.5), pytest.approx(12.7062 * (1 / 2 + 4 / 3) ** 0.5, rel=1e-5))


def test_labels_are_what_differs_or_what_is_asked(tmp_path):
    """Reward and alpha, then other settings, sorted by their numbers; of other rewards' settings nothing."""
    more = {"lr": (3e-3, 1e-3), "clip_limit": (1.0, 2.0)}
    runs = [planted(tmp_path / f"lr{i}", {0: 0.5}, alpha=2.0, lr=lr, clip_limit=limit) for i, (lr, limit) in enumerate(zip(*more.values(), strict=True))]  # fmt: skip
    groups = group_runs(read_runs(runs))
    assert [group.label for group in groups] == ["lr 0.001", "lr 0.003"]
    assert title(groups) == "power 2: lr 0.001, 0.003 on bundled-student <- bundled-teacher, 1 seed each"
    clipped = [planted(tmp_path / f"clip{i}", {0: 0.5}, reward="clip", clip_limit=i) for i in (5, 1)]
    found = group_runs(read_runs([*runs, *clipped]))
    clips = [f"clip, clip_limit {limit}, lr not given" for limit in (1, 5)]
    assert [group.label for group in found] == ["power 2, lr 0.001", "power 2, lr 0.003", *clips]
    assert [group.label for group in group_runs(read_runs(runs), ["slow ", "fast"])] == ["slow", "fast"]
    for labels, words in (
        (["a"], r"labels: found 1, and there are 2 curves, in this order: lr 0.001 \(lr1\); lr 0.003 \(lr0\); type one for each"),
        (["a", "a"], "labels: found a, a, and two curves can't have one name"),
        (["a", ""], "there are 2 curves"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            group_runs(read_runs(runs), labels)
    # The place, the loader that was found and how often it saves make no other setting; the number of threads does.
    same = [planted(tmp_path / "s" / str(i), {0: 0.5}, seed=i, **given) for i, given in enumerate(({"save_every": 5}, {"engine": "loop"}, {"threads": 2}))]  # fmt: skip
    assert [(g.label, g.seeds) for g in group_runs(read_runs(same))] == [("threads 0", [0, 1]), ("threads 2", [2])]


def test_tokens_of_seeds_are_taken_together(tmp_path):
    """Two seeds of ten and five tokens: (2, 4 | 3 below, 1 above) and (5, 0); the second kept no step 3."""
    one = {"step": 1, "low": 0.0, "high": 1.0, "counts": [2, 4], "below": 3, "above": 1, "not_finite": 5, "position_width": 2, "position_count": [6, 4], "position_sum": [3.0, 1.0], "position_min": [-1.0, 0.0], "position_max": [2.0, 0.5]}  # fmt: skip
    two = one | {"counts": [5, 0], "below": 0, "above": 0, "not_finite": 0, "position_count": [5, 0], "position_sum": [2.5, 0.0], "position_min": [0.25, 0.0], "position_max": [0.5, 0.0]}  # fmt: skip
    folders = [planted(tmp_path / str(seed), {0: 0.5}, seed=seed) for seed in (0, 1)]
    for folder, kept in zip(folders, ([one, one | {"step": 2}, one | {"step": 3}], [two, two | {"step": 2}]), strict=True):  # fmt: skip
        (folder / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (group,) = group_runs(read_runs(folders))
    first = pooled(group.runs, min)
    assert density(first)["tokens"] == 15 and density(first)["density"] == [7 / (15 * 0.5), 4 / (15 * 0.5)]
    assert positions(first)["mean"] == [0.5, 0.25] and positions(first)["min"] == [-1.0, 0.0]
    assert positions(first)["max"] == [2.0, 0.5] and pooled(group.runs, max)["step"] == 2


def test_without_accuracy_the_kl_to_the_teacher_is_the_answer(tmp_path):
    """Bars of one run are 1.96 standard errors, of seeds their range; 40 steps are smoothed over three."""
    for seed in (0, 1):
        steps = [(s, {"kl/train": 2.0 - s / 40 + 0.1 * seed, "kl/train_error": 0.1}) for s in range(1, 41)]
        folder = planted(tmp_path / f"seed{seed}", {}, steps, seed=seed, steps=40, eval_benchmarks=None)
        held_out = [{"step": s, "eval/kl": v + 0.2 * seed, "eval/kl_error": 0.05, "eval/teacher_logprob": -1.5} for s, v in ((0, 2.5), (40, 1.0))]  # fmt: skip
        with open(folder / "metrics.jsonl", "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in held_out))
    runs = read_runs([tmp_path / "seed0", tmp_path / "seed1"])
    (both,), (alone,) = group_runs(runs), group_runs(runs[:1])
    assert sentences([alone], None)[0].startswith("seed0 (power 10), 40 of 40 steps: KL to the teacher on held-out prompts 2.500 ± 0.050 -> 1.000 ± 0.050 nats a token (± one standard error);")  # fmt: skip
    numbers = gather([alone], alone, None)
    kl = {picture.file: picture.figure for picture in pictures([alone], numbers, None)}["kl"].axes[0]
    smooth = [np.mean([2.0 - s / 40 for s in range(max(1, at - 1), min(40, at + 1) + 1)]) for at in range(1, 41)]
    assert kl.lines[0].get_ydata() == pytest.approx(smooth)
    (bars,) = [one for one in kl.containers if isinstance(one, ErrorbarContainer)]
    low_high = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert low_high[1] == pytest.approx([1.0 - 0.098, 1.0 + 0.098])
    rows = {row["name"]: row["values"] for row in numbers["table"]}
    assert rows["KL to the teacher, held-out prompts, last"] == [1.0]
    assert rows["teacher's mean log p, held-out prompts, last"] == [-1.5]
    assert gather([both], both, None)["end"]["values"] == {"power 10": {0: 1.0, 1: 1.2}}
    seeds = {p.file: p.figure for p in pictures([both], gather([both], both, None), None)}["kl"].axes[0]
    (bars,) = [one for one in seeds.containers if isinstance(one, ErrorbarContainer)]
    assert bars.lines[2][0].get_segments()[1][:, 1] == pytest.approx([1.0, 1.2])
    config = json.loads((tmp_path / "seed1" / "config.yaml").read_text()) | {"reward": "log_ratio"}
    (tmp_path / "seed1" / "config.yaml").write_text(json.dumps(config))
    two = group_runs(read_runs([run.path for run in runs]))  # points of one step stand 0.8% of the axis apart
    drawn = {p.file: p.figure for p in pictures(two, gather(two, two[0], None), None)}["kl"].axes[0]
    last = [one.lines[0].get_xdata()[-1] for one in drawn.containers if isinstance(one, ErrorbarContainer)]
    assert last == pytest.approx([39.84, 40.16])


@pytest.mark.parametrize("style", LOOKS)
def test_a_legend_of_nine_long_names_stands_below_axes_that_keep_their_size(tmp_path, style):
    names = [f"the student of {i} layers, taught at a learning rate that nobody would forget" for i in range(9)]
    runs = [planted(tmp_path / str(i), {0: 0.25, 10: 0.5}, lines(i), steps=10, alpha=i + 1) for i in range(9)]
    heights = {"accuracy": [], "gradient": [], "accuracy_alpha": [], "gradient_alpha": [], "length": []}
    with matplotlib.rc_context(LOOKS[style].rc):
        for labels in (names, names[:2]):
            short = [label[:24] for label in labels] if len(labels) == 2 else labels
            groups = group_runs(read_runs(runs[: len(labels)]), short)
            for picture in pictures(groups, gather(groups, groups[0], None), None, style):
                figure, (axes,) = picture.figure, picture.figure.axes
                figure.draw_without_rendering()
                for legend in figure.legends:
                    box = legend.get_window_extent()
                    assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1, picture.file
                    assert not box.overlaps(axes.get_tightbbox()), picture.file
                heights[picture.file].append(axes.get_window_extent().height)
                ticks = axes.get_xticks()
                assert np.array_equal(ticks, ticks.round()), picture.file  # steps, and here alphas, are whole numbers
                if picture.file == "length":
                    break
                if picture.file.startswith("accuracy"):
                    base = {line.get_label(): line.get_ydata() for line in axes.lines}["base (before training)"]
                    assert list(base) == [25, 25]
            assert len(figure.legends[0].get_texts()) == len(labels)
            said = answer(groups, groups[0])[0]
            assert said.startswith("Avg@8 at the end: from ") == (len(labels) == 9)  # nine are not named one by one
    for file, (many, few) in heights.items():
        assert many == pytest.approx(few, rel=0.08), file


def test_where_a_teacher_is_served_and_whether_it_is_offloaded_parts_no_seeds():
    served = [
        load_config("bundled", teacher=f"http://{host}:8000", teacher_name="t", seed=seed)
        for seed, host in enumerate("ab")
    ]
    away = [load_config("bundled", teacher_offload=on) for on in (False, True)]
    assert settings(served[0]) == settings(served[1]) and settings(away[0]) == settings(away[1]) != settings(served[0])


def test_runs_that_tell_the_chat_template_different_things_are_apart_and_in_order():
    told = [load_config("bundled", template_kwargs=each) for each in ({"effort": "low"}, {}, {"effort": "high"})]
    parts = [_order(config, ["template_kwargs"]) for config in told]
    assert sorted(parts) == [parts[2], parts[0], parts[1]] and len({tuple(settings(c).values()) for c in told}) == 3


def test_what_runs_beside_one_another_do_to_each_other_is_no_difference_and_every_figure_has_its_legend(tmp_path):
    """Of two settings one is ten tokens a second faster with every seed, and has other norms: of these a difference is said."""
    runs = []
    for alpha, speed in ((1, 100.0), (10, 110.0)):
        for seed in (0, 1, 2):
            more = {
                "time/tokens_per_second": speed + seed / 10,
                "parity/gap": 1e-6,
                "optim/grad_norm": alpha + seed / 10,
            }
            runs.append(planted(tmp_path / f"{alpha}-{seed}", {}, [(1, more), (2, more)], alpha=alpha, seed=seed, eval_benchmarks=None))  # fmt: skip
    groups = group_runs(read_runs(runs))
    numbers = gather(groups, groups[0], None)
    rows = {row["name"]: row for row in numbers["table"]}
    assert rows["tokens a second, median"]["values"] == pytest.approx([100.1, 110.1])
    assert rows["tokens a second, median"]["differences"] == [None, None]
    assert rows["median gradient norm"]["differences"][1] == pytest.approx(9)
    drawn = {picture.file: picture.figure for picture in pictures(groups, numbers, None)}
    for file in ("gap", "tokens_per_second", "gradient"):
        assert [t.get_text() for t in drawn[file].legends[0].get_texts()][:2] == ["power 1", "power 10"], file


def test_noise_of_two_sizes_has_its_unit_once(tmp_path):
    ends = {"a": (0.5, 0.6, 0.55), "b": (0.52, 0.58, 0.6), "c": (0.6, 0.5, 0.48)}
    runs = [planted(tmp_path / f"{name}{seed}", {0: 0.25, 10: avg}, alpha=i + 1, seed=seed) for i, (name, all_) in enumerate(ends.items()) for seed, avg in enumerate(all_)]  # fmt: skip
    groups = group_runs(read_runs(runs), list(ends))
    halves = [4.302652729911275 * np.std(np.subtract(ends[x], ends["a"]), ddof=1) / 3**0.5 for x in "bc"]
    assert sorted(100 * half for half in halves) == pytest.approx([8.7, 26.8], abs=0.1)
    assert "(noise: \u00b1 9 to 27 points)" in answer(groups, groups[0])[0]
    unscored = planted(tmp_path / "d", {}, lines(9), alpha=9, steps=10, eval_benchmarks=None)
    more = group_runs(read_runs([*runs, unscored]), [*ends, "d"])
    assert answer(more, more[0])[0].endswith(" Not known of d.")


def test_a_difference_has_the_digits_that_show_it_to_be_more_than_its_noise():
    assert difference_in_words(0.2, "%", 0.0497) == "+20 \u00b1 5 points"
    assert difference_in_words(-0.2793, "%", 0.2788) == "-27.93 \u00b1 27.88 points"
    assert difference_in_words(-0.0306, "", 0.0212) == "-0.03 \u00b1 0.02"
    assert difference_in_words(0.2788, "%", 0.2793) == ""
    assert difference_in_words(0.001, "%", 0.0004) == "+0.10 \u00b1 0.04 points"


def test_settings_that_end_as_they_began_or_lower_are_named(tmp_path):
    """From 25%: 12, 35 and 1 points more, half of whose interval is 43; 30, 31, 29; and 20, 21, 19 less. Then from 25% as given."""
    ends = {"a": (0.37, 0.6, 0.26), "b": (0.55, 0.56, 0.54), "c": (0.05, 0.04, 0.06)}
    runs = [planted(tmp_path / f"{name}{seed}", {0: 0.25, 10: avg}, alpha=i + 1, seed=seed) for i, (name, all_) in enumerate(ends.items()) for seed, avg in enumerate(all_)]  # fmt: skip
    groups = group_runs(read_runs(runs), list(ends))
    told = " No change beyond noise since before training: a. Worse than before training: c."
    assert answer(groups, groups[0])[0].endswith(told)
    for run, avg in zip(runs, [value for all_ in ends.values() for value in all_], strict=True):
        (run / "eval" / "step_000010").mkdir(parents=True)
        results = {"n": 8, "benchmarks": {"bundled": {"avg@8": avg}}}
        (run / "eval" / "step_000010" / "results.json").write_text(json.dumps(results))
        (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s} | m) + "\n" for s, m in lines(10)))
    groups = group_runs(read_runs(runs), list(ends))
    assert "since before" not in answer(groups, groups[0])[0]  # of what was before, nothing is known
    assert answer(groups, groups[0], Reference(0.25, "as given"))[0].endswith(told)
    others = Reference(0.25, "of others", titles={"gsm8k": "Avg@8"})
    assert "since before" not in answer(groups, groups[0], others)[0]
    # A share of a teacher that was scored on the same.
    same = Reference(0.5, "of the same", titles={"bundled": "Avg@8"})
    assert sentences(groups, same)[1].startswith("b, 3 seeds, 0 of 100 steps: Avg@8 55% \u00b1 2 on bundled at step 10 by evaluate, 110% \u00b1 5 of the teacher's")  # fmt: skip
    assert "of the teacher's" not in "".join(sentences(groups, others)[:3])


@pytest.mark.parametrize(("after", "words"), [(0.35, "+5.0 \u00b1 5.5 points, 95%, within noise"), (0.36, "+6.0 \u00b1 5.5 points, 95%")])  # fmt: skip
def test_a_change_is_told_from_noise_at_95_percent(tmp_path, after, words):
    """Two ends of 2 points of standard error each: 1.96 sqrt(8) = 5.5."""
    run = planted(tmp_path / "run", {0: 0.3, 100: after}, [(step, more) for step, more in lines(1)], steps=100)
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line | ({"eval/avg_error": 0.02} if "eval/avg@8" in line else {}) for line in found]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    (group,) = group_runs(read_runs([run]))
    assert f"Avg@8 30.0% -> {after:.1%} (step 0 -> 100; {words});" in sentences([group], None)[0]
    axes = next(pictures([group], gather([group], group, None), None)).figure.axes[0]
    (bars,) = axes.collections  # of the error bars
    low, high = (segment[:, 1].tolist() for segment in bars.get_segments())
    assert low == pytest.approx([30 - 3.92, 30 + 3.92]) and high == pytest.approx(
        [100 * after - 3.92, 100 * after + 3.92]
    )
