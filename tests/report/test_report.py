"""The report of real runs: its numbers against float64 from raw tokens, what is drawn, the page, the refusals."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import QUICK as SHORT
from exact import drawn_rollouts, float64_model, nf4_model, token_logprobs, token_rows

from poweropd_lite.base.config import load_config
from poweropd_lite.report.groups import group_runs
from poweropd_lite.report.pictures import pictures
from poweropd_lite.report.read import Reference, read_runs
from poweropd_lite.report.write import gather
from poweropd_lite.train import train

QUICK = SHORT | {"data": "bundled"}  # whose first four steps reach what the picture of steps is drawn of
REWARDS = {
    "power": {"alpha": 10},
    "log_ratio": {"reward": "log_ratio"},
    "clip": {"reward": "clip"},
    "tanh": {"reward": "tanh"},
    "zscore": {"reward": "zscore"},
    "full_kl": {"reward": "full_kl"},
}


def command(*args, cwd):
    return forked.run("-m", "poweropd_lite.report", *map(str, args), cwd=cwd)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of four steps of each reward, in runs/REWARD."""
    folder = tmp_path_factory.mktemp("report")
    for name, settings in REWARDS.items():
        more = {"eval_every": 0, "eval_benchmarks": None} if name not in ("power", "log_ratio") else {}
        train(load_config("bundled", **QUICK | settings | more, sample_every=2, output=str(folder / "runs" / name)))
    return folder


@pytest.fixture(scope="module")
def first_step():
    """Of the tokens that these runs sample first: the NF4 teacher's log p, log q, their KL in float64, the rollouts."""
    config = load_config("bundled", **QUICK)
    _, ((*rollouts,),) = drawn_rollouts(config, QUICK["batch_size"])
    log_p, log_q = token_logprobs(nf4_model(), rollouts), token_logprobs(float64_model("student"), rollouts)
    with torch.no_grad():
        p, q = token_rows(nf4_model(), rollouts)[0], token_rows(float64_model("student"), rollouts)[0]
    shared = min(p.shape[-1], q.shape[-1])
    p, q = p[:, :shared], q[:, :shared]
    kl = (q.exp() * (q - p)).sum(-1)
    return log_p.numpy(), log_q.numpy(), kl.numpy(), rollouts


def exact_rewards(name, log_p, log_q, kl):
    ratio = log_p - log_q
    return {
        "power": np.exp(10 * log_p) - np.exp(10 * log_q),
        "log_ratio": ratio,
        "clip": ratio.clip(-1, 1),
        "tanh": np.tanh(ratio / 5),
        "zscore": (ratio - ratio.mean()) / ratio.std(),
        "full_kl": -kl,
    }[name]


@pytest.mark.parametrize("name", REWARDS)
def test_density_and_places_are_those_of_the_raw_tokens_in_float64(name, runs, first_step):
    log_p, log_q, kl, rollouts = first_step
    rewards = exact_rewards(name, log_p, log_q, kl)
    found = group_runs(read_runs([runs / "runs" / name]))
    numbers = gather(found, found[0], None)
    density, places = numbers["density"][name], numbers["positions"][name]
    assert density["step"] == 1 and density["tokens"] == rewards.size

    edges = np.array(density["edges"])
    counts = (np.array(density["density"]) * np.diff(edges) * rewards.size).round().astype(int)
    inside = rewards[(rewards > edges[0] - 1e-4) & (rewards < edges[-1] + 1e-4)].clip(edges[0], edges[-1])
    exact = np.histogram(inside, bins=edges)[0]
    # Rewards within 1e-4 of an edge may round to its other side: the two counts agree but for them.
    loose = (np.abs(rewards[:, None] - edges[None, 1:-1]) < 1e-4).any(1).sum()
    assert np.abs(counts - exact).sum() <= 2 * loose and loose < 0.2 * rewards.size
    assert (
        density["below"] == (rewards < edges[0] - 1e-4).sum() and density["above"] == (rewards > edges[-1] + 1e-4).sum()
    )
    whole = counts.sum() + density["below"] + density["above"]
    assert whole == pytest.approx(rewards.size)

    lengths = [len(r.completion_ids) - (r.finish == "stop") for r in rollouts]
    at = np.concatenate([np.arange(n) for n in lengths]) // places["width"]
    for i, place in enumerate(places["place"]):
        there = rewards[at == (place - (places["width"] - 1) / 2) / places["width"]]
        assert places["count"][i] == there.size
        assert places["mean"][i] == pytest.approx(there.mean(), rel=1e-3, abs=1e-4)
        assert places["min"][i] == pytest.approx(there.min(), rel=1e-3, abs=1e-4)
        assert places["max"][i] == pytest.approx(there.max(), rel=1e-3, abs=1e-4)
    assert sum(places["count"]) == rewards.size

    band = numbers["reward"][name]
    assert band["step"] == [1, 2, 3, 4]
    for key, share in (("min", 0), ("p05", 0.05), ("p95", 0.95), ("max", 1)):
        assert band[f"reward/{key}"][0] == pytest.approx(np.quantile(rewards, share), rel=1e-3, abs=1e-4)


def test_a_samples_tokens_and_rewards_are_those_of_the_rollout(runs, first_step, pair):
    """Step 2's sample is rollout 0 of that step; here a run of one step, whose tokens are known in float64."""
    log_p, log_q, kl, rollouts = first_step
    folder = runs / "runs" / "one-step"
    short = QUICK | {"steps": 1, "eval_benchmarks": None, "eval_every": 0, "sample_every": 1}
    train(load_config("bundled", **short, output=str(folder)))
    (sample,) = read_runs([folder])[0].samples
    ids = list(rollouts[0].completion_ids)
    assert "".join(sample["tokens"]) == sample["completion"] == pair.tokenizer.decode(ids)
    assert len(sample["tokens"]) == len(ids)
    kept = len(ids) - (rollouts[0].finish == "stop")
    exact = exact_rewards("power", log_p, log_q, kl)[:kept]
    assert sample["rewards"] == pytest.approx(exact, rel=1e-3, abs=1e-4)
    shutil.rmtree(folder)


def test_what_is_drawn_are_these_numbers(runs):
    found = group_runs(read_runs([runs / "runs" / "log_ratio", runs / "runs" / "power"]))
    numbers = gather(found, found[0], None)
    drawn = {picture.title: picture.figure for picture in pictures(found, numbers, None)}
    lines = {line.get_label(): line.get_xydata() for line in drawn["Accuracy by step"].axes[0].lines}
    for name in ("power 10", "log_ratio"):
        avg = numbers["accuracy"][name]
        assert lines[name].tolist() == [[s, 100 * a] for s, a in zip(avg["step"], avg["avg"], strict=True)]
        gradient = next(line for line in drawn["Gradient norm by step"].axes[0].lines if line.get_label() == name)
        assert gradient.get_ydata().tolist() == numbers["gradient"][name]["optim/grad_norm"]
        first, last = drawn[f"Reward density: {name}"].axes[0].patches
        assert (first.get_label(), last.get_label()) == ("before training", "step 4")
        assert list(first.get_data().values) == numbers["density"][name]["density"]
        assert list(last.get_data().values) == numbers["density_at_the_end"][name]["density"]
        mean = drawn[f"Reward by place: {name}"].axes[0].lines[0]
        assert mean.get_ydata().tolist() == numbers["positions"][name]["mean"]
        outer, inner = drawn[f"Reward by step: {name}"].axes[0].collections
        for band, low, high in ((outer, "min", "max"), (inner, "p05", "p95")):
            heights = band.get_paths()[0].vertices[:, 1]
            assert heights.min() == min(numbers["reward"][name][f"reward/{low}"])
            assert heights.max() == max(numbers["reward"][name][f"reward/{high}"])
    with_teacher = next(pictures(found, numbers, Reference(0.9, "as given"))).figure.axes[0]
    level = {line.get_label(): list(line.get_ydata()) for line in with_teacher.lines}
    base = 100 * numbers["accuracy"]["power 10"]["avg"][0]
    assert level["teacher"] == [90.0, 90.0] and level["base (before training)"] == [base, base]
    assert drawn["Reward by step: power 10"].axes[0].get_yscale() == "symlog"  # for its neighbour's sake: one scale
    assert drawn["Gradient norm by step"].axes[0].get_yscale() == "log"
    assert drawn["Reward density: power 10"].axes[0].get_yscale() == "log"


def test_the_page_stands_alone(runs):
    done = command(*(f"runs/{name}" for name in REWARDS), "--baseline", "log_ratio", "--teacher", "96.6", cwd=runs)
    assert done.returncode == 0, done.stderr
    folder = runs / "reports" / "power+log_ratio+clip+tanh+zscore+full_kl"
    assert f"files   {folder.relative_to(runs)}: index.html" in done.stdout
    page = (folder / "index.html").read_text()
    assert len(page) < 3e6
    assert not re.search(r"https?://(?!www\.w3\.org)", page) and "<script" not in page and "<link" not in page
    assert "width=device-width" in page
    assert page.count("<img alt='") == page.count("<figure>") >= 20
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["baseline"] == "log_ratio" and numbers["teacher"]["accuracy"] == pytest.approx(0.966)
    assert numbers["settings"]["reward"] == list(REWARDS)
    labels = ["power 10", *list(REWARDS)[1:]]
    assert [group["label"] for group in numbers["groups"]] == labels
    assert "<title>power 10; log_ratio; clip; tanh; zscore and full_kl on bundled-student &lt;- bundled-teacher" in page
    for name in ("accuracy", "reward", "gradient", "density", "positions", "steps", "landscape", "time"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (folder / f"{name}.svg").read_bytes()
        pdf = (folder / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF-1.") and pdf.rstrip().endswith(b"%%EOF") and b"/FontFile2" in pdf
    first, last = numbers["accuracy"]["power 10"]["avg"][0], numbers["accuracy"]["power 10"]["avg"][-1]
    errors = [
        line["eval/avg_error"]
        for line in map(json.loads, (runs / "runs/power/metrics.jsonl").open())
        if "eval/avg_error" in line
    ]
    change = (
        f"{100 * (last - first):+.1f} \u00b1 {196 * math.hypot(errors[0], errors[-1]):.1f} points, 95%, within noise"
    )
    said = f"power (power 10), 4 of 4 steps: Avg@2 {first:.1%} -&gt; {last:.1%} ({change}), {last / 0.966:.1%} of the teacher"
    assert said in page
    kl = [json.loads(line)["kl/train"] for line in (runs / "runs/tanh/metrics.jsonl").read_text().splitlines()]
    said = f"the training rollouts {kl[0]:.3g} -&gt; {kl[-1]:.3g} nats a token."
    assert f"tanh (tanh), 4 of 4 steps: KL to the teacher on {said}" in page
    again = command("runs/power", cwd=runs)
    before = (runs / "runs/power/report/index.html").read_bytes()
    assert again.returncode == 0 and command("runs/power", cwd=runs).returncode == 0  # replaces its own
    assert len(before) == len((runs / "runs/power/report/index.html").read_bytes())


def test_refusals(runs, tmp_path):
    run = runs / "runs" / "power"
    cases = {
        (): "no run to report on; type the folder that train wrote",
        (tmp_path / "nothing",): "nothing is no run: there is no such folder",
        (tmp_path,): "is no run: it holds no metrics.jsonl and config.yaml",
        (run, run): "a run is named twice; leave one out",
        (run, "--baseline", "other"): "baseline: other is none of the runs; type one of power",
        (run, "--labels", "a,b"): "labels: found 2, and there are 1 curve: power (power); type one for each",
        (run, "--style", "poster"): "style: found 'poster', but it should be 'screen' or 'paper'",
        (run, "--teacher", "0.966"): "an accuracy is in percent; did you mean 96.6?",
        (run, "--teacher", "966"): "teacher: found 966, but an accuracy is between 0 and 100",
        (
            run,
            "--teacher",
            "evaluations/none",
        ): "evaluations/none holds no results of an evaluation; type --teacher with",
        (run, "--output", run): "holds other things than a report, which never replaces them; type another --output",
        (run, "--output", run / "config.yaml"): "config.yaml is a file; type --output with the name of a new folder",
        (run, "--open", "yes"): "unknown argument '--open'",
    }
    kept = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    for args, message in cases.items():
        done = command(*args, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (args, done.stderr)
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == kept


def test_no_torch_is_imported():
    code = """
import contextlib, sys
from poweropd_lite.report.__main__ import main
with contextlib.suppress(SystemExit):
    main(["--help"])
assert not {"torch", "matplotlib", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--teacher" in done.stdout
