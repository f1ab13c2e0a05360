"""Advice: its numbers against float64 by hand, by autograd on whole logits and by plain loops; exit codes and what is left."""

import json
import math
from dataclasses import replace

import forked
import pytest
import torch
from conftest import DATA
from exact import TINY, drawn_rollouts, float64_model, token_logprobs, token_rows

from poweropd_lite.base.config import load_config
from poweropd_lite.rehearse.scored import prepare_to_score, reward_configs
from poweropd_lite.rehearse.stats import (
    by_decile,
    effective_share,
    places,
    reward_facts,
    top_share,
    truncation,
    truncation_push,
)
from poweropd_lite.rewards.part import Part

ROLLOUTS, BATCH = 24, 8


def run_advise(*flags, cwd):
    data = [] if "--data" in flags else ["--data", DATA]
    return forked.run("-m", "poweropd_lite.advise", *flags, *data, cwd=cwd)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_facts_of_rewards_worked_by_hand():
    r, pull, ratio = vector(0.5, -0.5, 0.0, 0.002, -1.0), vector(1.0, 0.1, 0.3, 0.5, 0.2), vector(1, -1, 0, -1, -1)
    found = reward_facts(r, pull, ratio, 0.01)
    assert found["tokens"] == 5 and found["live_share"] == pytest.approx(3 / 5)
    assert (found["positive_share"], found["negative_share"], found["zero_share"]) == (0.4, 0.4, 0.2)
    assert found["positive_mass"] == pytest.approx(0.502 / 2.002) and found["mean_abs"] == pytest.approx(2.002 / 5)
    assert found["mean"] == pytest.approx(-0.998 / 5) and (found["min"], found["max"]) == (-1.0, 0.5)
    assert found["variance"] == pytest.approx((0.25 + 0.25 + 4e-6 + 1) / 5 - (0.998 / 5) ** 2)
    assert found["sign_unlike_log_ratio"] == pytest.approx(1 / 5)  # the fourth
    # The top 1% of five tokens is one. |r| g: 0.5, 0.05, 0, 0.001, 0.2
    assert found["tail"] == pytest.approx(1.0 / 2.002) and found["top_gradient"] == pytest.approx(0.5 / 0.751)
    assert found["effective_share"] == pytest.approx(0.751**2 / (5 * (0.25 + 0.0025 + 1e-6 + 0.04)))


def test_shares_at_their_ends():
    assert effective_share(torch.ones(7, dtype=torch.float64)) == pytest.approx(1.0)
    assert effective_share(vector(3.0, 0, 0, 0)) == pytest.approx(0.25)
    assert top_share(torch.ones(1000, dtype=torch.float64)) == pytest.approx(0.01)
    assert top_share(torch.ones(1001, dtype=torch.float64)) == pytest.approx(11 / 1001)  # 10.01 is rounded up
    assert top_share(torch.zeros(3, dtype=torch.float64)) is None
    assert reward_facts(torch.zeros(3, dtype=torch.float64), None, None, 0.01)["positive_mass"] is None


def test_tenths_of_completions():
    """20 tokens: two a tenth; 3 tokens: the tenths 0, 3 and 6; none of a rollout that was all masked stop."""
    assert places((20, 0, 3)).tolist() == [*(i // 2 for i in range(20)), 0, 3, 6]
    r = vector(*range(1, 4))
    found = by_decile(r, torch.ones_like(r), r, places((3,)), 0.01)
    assert [part and part["mean"] for part in found] == [1.0, None, None, 2.0, None, None, 3.0, None, None, None]


def test_truncation_worked_by_hand():
    """The third token could not be drawn: sum |r| g of the others is 0.5 x 0.8 + 1 x 0.5 = 0.9."""
    mass, kept, bias = vector(0.9, 1.0, 0.8), vector(1, 1, 0), vector(0.1, 0.0, 0.3)
    found = truncation(mass, kept, bias)
    assert found["kept_mass"] == pytest.approx(0.9) and found["tokens_outside"] == pytest.approx(1 / 3)
    assert found["kept_mass_p05"] == pytest.approx(0.81) and found["bias"] == pytest.approx(0.4 / 3)
    push = truncation_push(vector(-0.5, 1.0, 9.0), vector(0.8, 0.5, 1.0), kept, bias)
    assert push["push"] == pytest.approx(0.05 / 0.9) and push["net_push"] == pytest.approx(-0.05 / 0.9)
    assert truncation_push(vector(0.0, 0.0, 1.0), vector(0.8, 0.5, 1.0), kept, bias) == {"push": None, "net_push": None}


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """Advice on 24 rollouts, gradients of two batches of eight, with a float32 teacher: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("advised")
    flags = ["--rollouts", str(ROLLOUTS), "--batch-size", str(BATCH), "--gradient-steps", "2", "--teacher-bits", "32"]
    done = run_advise(*flags, "--json", "--output", "report", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "report", json.loads(done.stdout), done


@pytest.fixture(scope="module")
def material():
    """The same rollouts by steps, with float64 log p and log q of their tokens."""
    ready, steps = drawn_rollouts(load_config("bundled", data=DATA, batch_size=BATCH), ROLLOUTS)
    rollouts = [r for step in steps for r in step]
    return ready, steps, rollouts, *(token_logprobs(float64_model(role), rollouts) for role in ("teacher", "student"))


def test_rewards_against_float64(advised, material):
    _, report, _ = advised
    _, steps, rollouts, log_p, log_q = material
    assert report["tokens"] == len(log_p) and report["rollouts"] == ROLLOUTS
    ratio = log_p - log_q
    sizes = [sum(len(r.completion_ids) - (r.finish == "stop") for r in step) for step in steps]
    expected = {f"power {a:g}": (a * log_p).exp() - (a * log_q).exp() for a in (0.1, 1, 10, 500)}
    expected |= {"log_ratio": ratio, "clip": ratio.clamp(-1, 1), "tanh": (ratio / 5).tanh()}
    expected["zscore"] = torch.cat([(x - x.mean()) / x.std(correction=0) for x in ratio.split(sizes)])
    expected |= {"f_jsd": ((1 + ratio.exp()) / 2).log() / 2, "f_fkl": (ratio.exp() - 1).clamp_max(10)}
    expected["extrapolated"] = 1.25 * ratio  # the adapter is new, so the reference is the student
    for name, r in expected.items():
        row = report["rewards"][name]
        assert row["live_share"] == pytest.approx((r.abs() > 0.01).double().mean().item(), abs=2 / len(r)), name
        assert row["mean"] == pytest.approx(r.mean().item(), rel=1e-4, abs=1e-5), name
        assert row["variance"] == pytest.approx(r.var(correction=0).item(), rel=1e-3), name
        assert row["p05"] == pytest.approx(torch.quantile(r, 0.05).item(), rel=1e-3, abs=1e-4), name
        assert row["positive_mass"] == pytest.approx((r[r > 0].sum() / r.abs().sum()).item(), abs=1e-4), name
    assert report["rewards"]["zscore"]["sign_unlike_log_ratio"] > 0.1
    assert report["rewards"]["power 10"]["sign_unlike_log_ratio"] == 0.0
    # The last tenth of each completion, token by token.
    r, last, at = expected["power 10"].tolist(), [], 0
    for rollout in rollouts:
        n = len(rollout.completion_ids) - (rollout.finish == "stop")
        last += [r[at + i] for i in range(n) if 10 * i // n == 9]
        at += n
    assert report["rewards"]["power 10"]["by_decile"][9]["mean"] == pytest.approx(sum(last) / len(last), rel=1e-4)


def test_gradient_shares_and_truncation_against_whole_float64_rows(advised, material):
    _, report, _ = advised
    ready, _, rollouts, log_p, log_q = material
    with torch.no_grad():
        rows, ids = token_rows(float64_model("student"), rollouts)
    q = rows.exp()
    onehot = torch.nn.functional.one_hot(ids, q.shape[1]).double()
    pull = (onehot - q).norm(dim=-1)
    for name, r in (("power 10", (10 * log_p).exp() - (10 * log_q).exp()), ("log_ratio", log_p - log_q)):
        weights = (r.abs() * pull).sort(descending=True).values
        top = weights[: math.ceil(len(weights) / 100)].sum() / weights.sum()
        assert report["rewards"][name]["top_gradient"] == pytest.approx(top.item(), rel=1e-3)
        # top-k 20, top-p 0.95, in the order of the engine: padded rows out, the 20 largest, then the fewest that hold 95%
        allowed = q.clone()
        allowed[:, list(ready.pair.forbidden)] = 0.0
        s, inside = torch.zeros_like(q), torch.zeros(len(ids))
        for i, line in enumerate(allowed):
            values, order = line.sort(descending=True)
            values = values[:20] / values[:20].sum()
            count = int((values.cumsum(0) - values < 0.95).sum())
            s[i, order[:count]] = values[:count] / values[:count].sum()
            inside[i] = float(ids[i] in order[:count])
        found = report["truncations"]["top-k 20, top-p 0.95"]
        assert found["kept_mass"] == pytest.approx((q * (s > 0)).sum(-1).mean().item(), rel=1e-6)
        assert found["tokens_outside"] == pytest.approx(1 - inside.mean().item(), abs=1e-6)
        bias = (s - q).norm(dim=-1)
        assert found["bias"] == pytest.approx(bias.mean().item(), rel=1e-3)
        push = (r.abs() * bias)[inside > 0].sum() / (r.abs() * pull)[inside > 0].sum()
        assert found["full_score_push"][name]["push"] == pytest.approx(push.item(), rel=1e-3)
    assert report["truncations"]["untruncated"]["tokens_outside"] == 0.0


def test_gradients_against_autograd_on_whole_float64_logits(advised, material):
    """B of every adapter, at zero: its gradient is that of the weight times A's rows; done by PEFT in float64, plainly."""
    from poweropd_lite.models.adapter import with_adapter

    _, report, _ = advised
    ready, steps, _, log_p, log_q = material
    torch.manual_seed(0)
    import transformers

    transformers.set_seed(ready.config.seed)
    student = with_adapter(float64_model("student").float(), ready.config).double()
    teacher = float64_model("teacher")
    parameters = [p for p in student.parameters() if p.requires_grad]

    def gradient(loss):
        found = torch.autograd.grad(loss, parameters)
        return torch.cat([g.flatten() for g in found])

    made = {"power 10": [], "log_ratio": [], "full_kl": []}
    for step in steps[:2]:
        rows, ids = token_rows(student, step)
        with torch.no_grad():
            theirs, _ = token_rows(teacher, step)
        s = rows - rows[:, [i for i in range(512) if i not in ready.pair.forbidden]].logsumexp(-1, keepdim=True)
        score, n = s.gather(-1, ids[:, None]).squeeze(-1), len(ids)
        p, q = (x.detach().gather(-1, ids[:, None]).squeeze(-1) for x in (theirs, rows))
        made["power 10"].append(gradient(-(((10 * p).exp() - (10 * q).exp()) * score).sum() / n))
        rows, ids = token_rows(student, step)
        s = rows - rows[:, [i for i in range(512) if i not in ready.pair.forbidden]].logsumexp(-1, keepdim=True)
        made["log_ratio"].append(gradient(-((p - q) * s.gather(-1, ids[:, None]).squeeze(-1)).sum() / n))
        rows, _ = token_rows(student, step)
        made["full_kl"].append(gradient((rows.exp() * (rows - theirs)).sum() / n))
    for name, vectors in made.items():
        found = report["rewards"][name]["gradient"]
        assert found["norm"] == pytest.approx([v.norm().item() for v in vectors], rel=1e-3), name
        near = [torch.cosine_similarity(a, b, 0) for a, b in zip(vectors, made["full_kl"], strict=True)]
        assert found["cosine_full_kl"] == pytest.approx(torch.stack(near).mean().item(), abs=1e-3), name
        between = torch.cosine_similarity(*vectors, 0).item()
        assert found["cosine_between_batches"] == pytest.approx(between, abs=1e-3), name


def test_what_a_reader_finds(advised):
    folder, report, done = advised
    assert {k: v for k, v in report.items() if k != "folder"} == json.loads((folder / "advise.json").read_text())
    assert list(report["rewards"]) == [
        *(f"power {a}" for a in ("0.1", "0.5", "1", "5", "10", "50", "100", "500")),
        *("log_ratio", "clip", "tanh", "zscore", "full_kl"),
        *("f_fkl", "f_hellinger", "f_jsd", "f_tv", "soft_log", "relaxed", "extrapolated", "constant", "random"),
        *("full_power 10", "full_jsd", "top_k"),
    ]
    assert report["verdict"]["line"].startswith("yes: |r| of power 10 is over 0.01 for ")
    assert report["verdict"]["note"] == "" and report["own"] == "power 10"
    named = {label: (row["reward"], row["alpha"]) for label, row in report["rewards"].items()}
    assert named["power 0.5"] == ("power", 0.5) and named["tanh"] == ("tanh", None)
    row = report["rewards"]["power 10"]
    printed = next(line for line in done.stderr.splitlines() if line.startswith("power 10 *"))
    assert f"{100 * row['live_share']:.1f}% " in printed and f"{row['gradient']['cosine_full_kl']:.2f}" in printed
    assert row["mean_norm"] == pytest.approx(sum(row["gradient"]["norm"]) / 2)
    text = (folder / "advise.md").read_text()
    line = next(line for line in text.split("## Rewards")[1].splitlines() if line.startswith("| power 10 |"))
    values = [value for key, value in row.items() if type(value) in (int, float) and key != "alpha"]
    values += [row["gradient"][key] for key in ("cosine_full_kl", "cosine_between_batches")]
    assert len(values) == 20 and line == "| power 10 | " + " | ".join(f"{value:.6g}" for value in values) + " |"
    assert f"| {row['by_decile'][9]['mean']:.6g} |" in text  # of the last tenth
    for name, cut in report["truncations"].items():
        push = cut["full_score_push"]["power 10"]
        assert f"| power 10 | {push['push']:.6g} | {push['net_push']:.6g} |" in text.split(f"sampled {name}\n")[1]
    assert (folder / "advise.png").read_bytes().startswith(b"\x89PNG")
    assert "gradients  50/50" in done.stderr


FEW = ["--rollouts", "8", "--batch-size", "4", "--gradient-steps", "2", "--output", "report"]


def test_a_host_with_too_little_memory_for_the_gradients(student_model, monkeypatch):
    """660,000 weights as 3 gradients, twice, in float32: 15.9 MB, which half of 24 MB does not hold."""
    from poweropd_lite.base.errors import UserError
    from poweropd_lite.models.student import Student
    from poweropd_lite.rehearse import gradients

    student = Student(student_model, torch.device("cpu"), torch.float32)
    count = sum(p.numel() for p in student_model.parameters())
    monkeypatch.setattr(gradients, "machine_bytes", lambda: 48 * count + 2)
    gradients.check_room(student, 3)
    monkeypatch.setattr(gradients, "machine_bytes", lambda: 48 * count - 2)
    with pytest.raises(UserError, match="type --gradient-steps 2"):
        gradients.check_room(student, 3)


def test_a_reward_that_pays_too_few_is_refused(tmp_path):
    """At alpha 1e6 only log-probs within 5e-6 of 0 are paid 0.01 or more."""
    done = run_advise(*FEW, "--alpha", "1000000", "--min-live-share", "0.2", cwd=tmp_path)
    report = json.loads((tmp_path / "report" / "advise.json").read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    row = report["rewards"]["power 1e+06"]
    assert 0 < row["live_share"] < 0.2 and not report["verdict"]["sound"] and row["alpha"] == 1e6
    assert "no: |r| of power 1e+06 is over 0.01 for" in done.stdout and "; type --alpha " in done.stdout
    assert row["heavy"] and 0.9 < row["top_gradient"] <= 1.0  # a few tokens carry it
    assert f" {100 * row['top_gradient']:.0f}%!" in done.stdout


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(tmp_path):
    done = run_advise(
        *FEW, "--config", "bundled", "--teacher", str(TINY / "student"), "--teacher-bits", "32", cwd=tmp_path
    )
    report = json.loads((tmp_path / "report" / "advise.json").read_text())
    assert done.returncode == 1 and "student and teacher say nearly the same (p - q is 0 on average)" in done.stdout
    means = {name: row["mean"] for name, row in report["rewards"].items()}
    assert means.pop("constant") == 1.0 and 0 < abs(means.pop("random")) < 0.5
    assert all(abs(mean) < 1e-4 for mean in means.values())
    assert report["rewards"]["power 10"]["live_share"] == 0.0


def test_other_settings(tmp_path):
    """full_kl as the run's own reward, full fine-tuning, truncated sampling, every token of a stop in the loss."""
    flags = ["--rollouts", "8", "--batch-size", "4", "--gradient-steps", "2", "--output", "report", "--json"]
    flags += ["--reward", "full_kl", "--full-finetune", "--top-k", "5", "--temperature", "0.7", "--stop-mode", "raw"]
    done = run_advise(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sampling"] == "top-k 5, temperature 0.7" and report["own"] == "full_kl"
    assert report["truncations"]["top-k 5, temperature 0.7"]["tokens_outside"] < 0.01
    assert report["rewards"]["full_kl"]["gradient"]["cosine_full_kl"] == pytest.approx(1.0)
    assert "extrapolated" not in report["rewards"]  # every weight is trained, so there is no reference


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rollouts", "40"], ["3 batches of 32", "40 rollouts make 1", "type --rollouts 96"]),
        (["--gradient-steps", "1"], ["gradient_steps", "greater than or equal to 2"]),
        (["--live-reward", "0"], ["live_reward", "greater than 0"]),
        (["--reward", "full_kl", "--stop-mode", "relabel"], ["relabel", "--score full"]),
        (["--gradiant-steps", "2"], ["did you mean '--gradient-steps'"]),
        (["--output", "file"], ["file is a file", "--output"]),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, flags, words):
    (tmp_path / "file").write_text("mine")
    done = run_advise(*flags, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("score", ["sampled", "full"])
def test_the_pull_of_a_token_is_that_of_the_distribution_it_is_scored_under(tmp_path, score):
    """From Python. Top-k 5 at temperature 0.7: norm(onehot - s) for score sampled, norm(onehot - q) for full."""
    from poweropd_lite.advise import advise
    from poweropd_lite.rehearse.settings import AdviseConfig

    config = load_config("bundled", data=DATA, batch_size=4, top_k=5, temperature=0.7, score=score, teacher_bits=32)
    asked = AdviseConfig(rollouts=8, gradient_steps=2, output=str(tmp_path / "report"))
    report = advise(config, asked, say=lambda text: None)
    ready, steps = drawn_rollouts(config, 8)
    rollouts = [r for step in steps for r in step]
    with torch.no_grad():
        rows, ids = token_rows(float64_model("student"), rollouts)
    log_q = rows.gather(-1, ids[:, None]).squeeze(-1)
    r = (10 * token_logprobs(float64_model("teacher"), rollouts)).exp() - (10 * log_q).exp()
    of = rows.exp()
    if score == "sampled":
        allowed = rows.clone()
        allowed[:, list(ready.pair.forbidden)] = -torch.inf
        kept = allowed >= allowed.topk(5).values[:, -1:]
        of = (rows / 0.7).masked_fill(~kept, -torch.inf).softmax(-1)
    pull = (torch.nn.functional.one_hot(ids, 512) - of).norm(dim=-1)
    weights = (r.abs() * pull).sort(descending=True).values
    expected = weights[: math.ceil(len(weights) / 100)].sum() / weights.sum()
    assert report["rewards"]["power 10"]["top_gradient"] == pytest.approx(expected.item(), rel=1e-3)


def test_what_stands_beside_a_reward_is_left_out_and_said():
    """So that full_kl, which the others are compared with, is there by its own name, and whole."""
    said = []
    ready = prepare_to_score(load_config("bundled", data=DATA, keep="dial", baseline="own"), said.append)
    assert "baseline own, keep dial left out: rewards are compared with nothing beside them" in said
    replayed = reward_configs(ready.config, "full_kl", "extrapolated")
    assert {"power 10", "full_kl", "extrapolated"} < set(replayed)
    assert ready.objective.part == replace(Part(), keep_share=0.4, weight_gain=0.5, horizon=256)
    assert ready.objective.baseline == "none"
