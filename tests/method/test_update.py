"""One optimizer step against its plain definition on full logits in float64, for every reward, score and stop mode."""

import dataclasses

import pytest
import torch
from conftest import make_rollouts

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.method.batch import Stops, loss_tokens
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, accumulate, take_step
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.run.metrics import describe

REWARDS = ["power", "log_ratio", "clip", "tanh", "zscore", "full_kl"]
CPU = torch.device("cpu")


class Recording(torch.optim.SGD):
    """An optimizer that keeps the (clipped) gradient of its step and changes nothing."""

    def step(self, closure=None):
        self.gradient = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])


@pytest.fixture
def case(student_model, teacher_model, prompts, pair):
    """A float64 student with every weight trained, a float64 teacher and rollouts that end in every way."""
    sampling = Sampling(temperature=0.9, top_k=20, top_p=0.95, forbidden=torch.tensor(pair.forbidden))
    rollouts = make_rollouts(student_model, prompts[:6], pair, sampling, longest=45)
    stop = next(iter(pair.stop_ids))
    only_stop = Rollout(prompts[7].ids, (stop,), (0.0,), "stop")
    truncated = Rollout(prompts[8].ids, tuple(range(40, 60)), (0.0,) * 20, "length")
    return (
        Student(student_model.double(), CPU, torch.float64),
        Teacher(teacher_model),
        [*rollouts, only_stop, truncated],
        sampling,
    )


def step_gradient(case, pair, config):
    student, teacher, rollouts, sampling = case
    optimizer = Recording(list(student.trainable().values()), lr=1.0)
    metrics = step(student, teacher, optimizer, rollouts, sampling, pair, config)
    return optimizer.gradient, metrics


def step(student, teacher, optimizer, rollouts, sampling, pair, config):
    """Takes one step as training does; returns all of its metrics."""
    stops = Stops(config.stop_mode, pair.teacher_stop)
    settings = reward_settings(config)
    objective = Objective(config.reward, settings, sampling, config.score, stops, config.importance_cap)
    gradient = accumulate(student, teacher, rollouts, objective, config.token_budget)
    metrics = take_step(student, optimizer, gradient, config.max_grad_norm)
    return metrics | (describe(gradient.tokens, objective, rollouts) if gradient.count else {})


def plain_gradient(case, pair, config):
    """The definition: one rollout at a time, full float64 logits, autograd, sum over the step divided by N."""
    student, teacher, rollouts, sampling = case
    facts = []
    for rollout in rollouts:
        tokens = loss_tokens(rollout, Stops(config.stop_mode, pair.teacher_stop))
        student_ids, teacher_ids = tokens.student, tokens.teacher
        if not student_ids:
            continue
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        place = slice(len(rollout.prompt_ids) - 1, len(rollout.prompt_ids) - 1 + len(student_ids))
        z = student.model(input_ids=ids).logits[0, place]
        with torch.no_grad():
            z_teacher = teacher.model(input_ids=ids).logits[0, place]
        engine = torch.tensor(rollout.logprobs[: len(student_ids)], dtype=torch.float64)
        if rollout.finish == "stop" and config.stop_mode != "mask":
            engine[-1] = torch.nan  # a stop token may be scored under another id: it has weight 1
        facts.append((z, z_teacher, torch.tensor(student_ids)[:, None], torch.tensor(teacher_ids)[:, None], engine))
    z, z_teacher = torch.cat([f[0] for f in facts]), torch.cat([f[1] for f in facts])
    ids, teacher_ids = torch.cat([f[2] for f in facts]), torch.cat([f[3] for f in facts])
    log_q_all, log_p_all = z.log_softmax(-1), z_teacher.log_softmax(-1)
    log_q, log_p = log_q_all.gather(-1, ids).squeeze(-1), log_p_all.gather(-1, teacher_ids).squeeze(-1)
    q, p, ratio = log_q.detach().exp(), log_p.exp(), log_p - log_q.detach()
    score = log_q
    if config.score == "sampled":
        outside = torch.ones_like(z, dtype=torch.bool)
        for row, scaled in enumerate(z.detach() / sampling.temperature):
            scaled[sampling.forbidden] = -torch.inf
            best = scaled.topk(sampling.top_k)
            mass = best.values.softmax(-1)
            inside = best.indices[(mass.cumsum(-1) - mass) < sampling.top_p]
            outside[row, inside] = False
        outside.scatter_(-1, ids, False)
        scaled = (z / sampling.temperature).masked_fill(outside, -torch.inf)
        score = scaled.log_softmax(-1).gather(-1, ids).squeeze(-1)
    reward = {
        "power": p**10 - q**10,
        "log_ratio": ratio,
        "clip": ratio.clamp(-1, 1),
        "tanh": (ratio / 5).tanh(),
        "zscore": (ratio - ratio.mean()) / ratio.std(correction=0),
    }
    if config.importance_cap is not None:
        weight = (
            (log_q.detach() - torch.cat([f[4] for f in facts])).exp().nan_to_num(1.0).clamp_max(config.importance_cap)
        )
        reward = {name: value * weight for name, value in reward.items()}
    if config.reward == "full_kl":
        total = (log_q_all.exp() * (log_q_all - log_p_all)).sum()
    else:
        total = -(reward[config.reward] * score).sum()
    gradients = torch.autograd.grad(total / len(ids), list(student.trainable().values()))
    return torch.cat([g.flatten() for g in gradients]), len(ids)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("score", ["full", "sampled"])
def test_gradient_equals_the_definition_for_any_micro_batch_size(case, pair, reward, score):
    settings = {"reward": reward, "score": score, "max_grad_norm": 1e9, "stop_mode": "mask"}
    wanted, count = plain_gradient(case, pair, load_config("bundled", **settings))
    for budget in (240, 400, 8192):  # one or two rollouts at a time; all at once
        got, metrics = step_gradient(case, pair, load_config("bundled", **settings, token_budget=budget))
        assert relative(got, wanted) < 1e-6
        assert metrics["tokens/loss"] == count
        assert metrics["optim/student_passes"] == (2 if reward == "zscore" else 1)
        assert metrics["optim/grad_norm"] == pytest.approx(wanted.norm().item(), rel=1e-5)


@pytest.mark.parametrize("stop_mode", ["mask", "raw", "relabel", "cross_eos"])
@pytest.mark.parametrize("reward", ["power", "full_kl"])
def test_gradient_equals_the_definition_in_every_stop_mode(case, pair, stop_mode, reward):
    config = load_config(
        "bundled", reward=reward, score="full", stop_mode=stop_mode, max_grad_norm=1e9, token_budget=400
    )
    wanted, count = plain_gradient(case, pair, config)
    got, metrics = step_gradient(case, pair, config)
    assert relative(got, wanted) < 1e-6
    assert metrics["tokens/loss"] == count


@pytest.mark.parametrize(("reward", "stop_mode"), [("power", "mask"), ("zscore", "mask"), ("log_ratio", "cross_eos")])
def test_importance_weights_multiply_the_reward_and_are_capped(case, pair, reward, stop_mode):
    """An engine whose log-probs are off by up to one nat: weights e^(log q - engine's), at most 1.5."""
    student, teacher, rollouts, sampling = case
    generator = torch.Generator().manual_seed(0)
    off = [
        dataclasses.replace(r, logprobs=tuple(x + e for x, e in zip(r.logprobs, noise.tolist(), strict=True)))
        for r in rollouts
        for noise in [torch.rand(len(r.logprobs), generator=generator) * 2 - 1]
    ]
    settings = {"reward": reward, "stop_mode": stop_mode, "max_grad_norm": 1e9, "token_budget": 400}
    config = load_config("bundled", **settings, importance_cap=1.5)
    changed = (student, teacher, off, sampling)
    wanted, _ = plain_gradient(changed, pair, config)
    got, metrics = step_gradient(changed, pair, config)
    assert relative(got, wanted) < 1e-5
    unweighted, _ = step_gradient(changed, pair, load_config("bundled", **settings))
    assert relative(got, unweighted) > 0.05
    assert 0.1 < metrics["importance/capped_share"] < 0.5 and 0.5 < metrics["importance/mean"] < 1.5


def test_the_clip_comes_after_the_division_by_n(case, pair):
    settings = {"reward": "log_ratio", "score": "full"}
    free, metrics = step_gradient(case, pair, load_config("bundled", **settings, max_grad_norm=1e9))
    limit = metrics["optim/grad_norm"] / 3
    clipped, _ = step_gradient(case, pair, load_config("bundled", **settings, max_grad_norm=limit))
    assert relative(clipped, free / 3) < 1e-5


def test_a_step_without_tokens_is_dropped(case, pair):
    student, teacher, rollouts, sampling = case
    optimizer = torch.optim.SGD(list(student.trainable().values()), lr=1.0)
    before = {k: v.clone() for k, v in student.trainable().items()}
    only_stop = [r for r in rollouts if len(r.completion_ids) == 1]
    metrics = step(student, teacher, optimizer, only_stop, sampling, pair, load_config("bundled", stop_mode="mask"))
    assert (metrics["optim/skipped"], metrics["tokens/loss"]) == (1.0, 0)
    assert all(torch.equal(before[k], v) for k, v in student.trainable().items())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_never_reaches_the_weights(case, pair, poison):
    student, teacher, rollouts, sampling = case
    with torch.no_grad():
        student.model.model.norm.weight[0] = poison
    optimizer = torch.optim.SGD(list(student.trainable().values()), lr=1.0)
    before = {k: v.clone() for k, v in student.trainable().items()}
    config = load_config("bundled", reward="power")
    metrics = step(student, teacher, optimizer, rollouts, sampling, pair, config)
    assert metrics["optim/skipped"] == 1.0
    assert all(torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in student.trainable().items())


def test_metrics_describe_the_tokens(case, pair):
    config = load_config("bundled", reward="log_ratio", score="full", token_budget=400)
    student, teacher, rollouts, sampling = case
    _, metrics = step_gradient(case, pair, config)
    ratios = []
    for r in rollouts:
        ids = torch.tensor([r.prompt_ids + r.completion_ids])
        target = torch.tensor(loss_tokens(r, Stops("mask")).student, dtype=torch.long)[:, None]
        place = slice(len(r.prompt_ids) - 1, len(r.prompt_ids) - 1 + len(target))
        with torch.no_grad():
            q = student.model(input_ids=ids).logits[0, place].log_softmax(-1).gather(-1, target)
            p = teacher.model(input_ids=ids).logits[0, place].log_softmax(-1).gather(-1, target)
        ratios.append((p - q).squeeze(-1))
    ratio = torch.cat(ratios)
    for name, value in {
        "reward/mean": ratio.mean(),
        "reward/min": ratio.min(),
        "reward/p05": ratio.quantile(0.05),
        "reward/max": ratio.max(),
        "log_ratio/std": ratio.std(correction=0),
        "reward/positive_share": (ratio > 0).double().mean(),
    }.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("reward", ["power", "full_kl"])
@pytest.mark.parametrize("budget", [200, 4000])
def test_a_teacher_with_prompts_of_its_own_is_asked_behind_them(case, prompts, reward, budget):
    """Against each model's full logits, one rollout at a time; the teacher reads another prompt, longer or shorter."""
    student, teacher, rollouts, sampling = case
    rollouts = [dataclasses.replace(r, teacher_prompt_ids=prompts[20 + i].ids[i:]) for i, r in enumerate(rollouts)]
    log_p, log_q, kl = [], [], []
    with torch.no_grad():
        for r in rollouts:
            kept = r.completion_ids[:-1] if r.finish == "stop" else r.completion_ids
            sides = []
            for model, prompt in ((student.model, r.prompt_ids), (teacher.model, r.teacher_prompt_ids)):
                logits = model(torch.tensor([[*prompt, *r.completion_ids]])).logits[0, len(prompt) - 1 :][: len(kept)]
                sides.append(logits.log_softmax(-1))
            q, p = sides
            ids = torch.tensor(kept, dtype=torch.long)[:, None]
            log_q.append(q.gather(-1, ids)[:, 0])
            log_p.append(p.gather(-1, ids)[:, 0])
            kl.append((q.exp() * (q - p)).sum(-1))
    objective = Objective(reward, {"alpha": 10.0}, Sampling(), "sampled")
    tokens = accumulate(student, teacher, rollouts, objective, budget, teacher_budget=150 + budget).tokens
    log_p, log_q, kl = (torch.cat(each) for each in (log_p, log_q, kl))
    paid = -kl if reward == "full_kl" else (10 * log_p).exp() - (10 * log_q).exp()
    for found, wanted in ((tokens.log_p, log_p), (tokens.log_q, log_q), (tokens.reward, paid)):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
