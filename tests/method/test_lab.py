"""The laboratory's axes in a whole step: against the definition on full logits in float64, and by enumeration."""

import copy
import dataclasses
import itertools

import pytest
import torch
from conftest import make_rollouts
from test_update import CPU, Recording, case, relative  # noqa: F401  (a fixture)

from poweropd_lite.base.config import load_config
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.batch import Stops, loss_tokens
from poweropd_lite.method.logprobs import Sampling, score_tokens
from poweropd_lite.method.rollout import LOSS, Draws
from poweropd_lite.method.update import Objective, accumulate, take_step
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import SelfTeacher, Teacher
from poweropd_lite.rewards.part import Part

SHARE = 0.4
PARTS = {
    "dial": Part(keep="dial", keep_share=SHARE, dial_balance=0.5, keep_over="completion"),
    "entropy": Part(keep="entropy", keep_share=SHARE, keep_over="step"),
    "abs": Part(keep="abs", keep_share=SHARE, keep_over="step"),
    "random": Part(keep="random", keep_share=SHARE, keep_over="completion"),
    "remaining": Part(weight="remaining", weight_gain=0.5),
    "horizon": Part(weight="horizon", horizon=7),
}


def rows_of(case):  # noqa: F811
    """Full log-probs (student's with a graph) [N, V], ids [N] and lengths of all tokens under stop mode mask."""
    student, teacher, rollouts, _ = case
    ours, theirs, ids, lengths = [], [], [], []
    for rollout in rollouts:
        kept = loss_tokens(rollout, Stops("mask")).student
        lengths.append(len(kept))
        text = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        place = slice(len(rollout.prompt_ids) - 1, len(rollout.prompt_ids) - 1 + len(kept))
        ours.append(student.model(input_ids=text).logits[0, place].log_softmax(-1))
        with torch.no_grad():
            theirs.append(teacher.model(input_ids=text).logits[0, place].log_softmax(-1))
        ids += kept
    return torch.cat(ours), torch.cat(theirs), torch.tensor(ids, dtype=torch.long)[:, None], lengths


def gradient_of(case, objective, budget, **more):  # noqa: F811
    student, teacher, rollouts, _ = case
    optimizer = Recording(list(student.trainable().values()), lr=1.0)
    found = accumulate(student, teacher, rollouts, objective, budget, **more)
    metrics = take_step(student, optimizer, found, 1e9)
    return optimizer.gradient, found, metrics


def plain(case, total):  # noqa: F811
    gradients = torch.autograd.grad(total, list(case[0].trainable().values()))
    return torch.cat([g.flatten() for g in gradients])


def by_hand(name, log_p, log_q, entropy, noise, lengths):
    """Each token's part, one completion or step after the other, with Python's own sort."""
    out, start, d = [0.0] * len(log_p), 0, (log_p - log_q).tolist()
    difference = (log_p.exp() - log_q.exp()).tolist()
    rank = {
        "dial": [abs(a) ** 0.5 * abs(b) ** 0.5 for a, b in zip(d, difference, strict=True)],
        "entropy": entropy.tolist(),
        "abs": [abs(a) for a in d],
        "random": noise.tolist(),
    }
    for length in lengths if name not in ("entropy", "abs") else [len(d)]:
        mine = range(start, start + length)
        if name == "remaining":
            total, before = sum(abs(d[i]) for i in mine), 0.0
            for i in mine:
                out[i], before = 1 + 0.5 * (1 - before / total), before + abs(d[i])
        elif name == "horizon":
            for i in list(mine)[:7]:
                out[i] = 1.0
        elif length:
            best = sorted(mine, key=lambda i: -rank[name][i])[: max(1, round(SHARE * length))]
            for i in best:
                out[i] = 1.0
        start += length
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("reward", ["power", "full_kl"])
def test_kept_and_weighed_tokens_alone_make_the_gradient(case, name, reward):  # noqa: F811
    ours, theirs, ids, lengths = rows_of(case)
    log_q, log_p = ours.gather(-1, ids)[:, 0], theirs.gather(-1, ids)[:, 0]
    draws = Draws(3, LOSS, 5, (0, 1))
    entropy = -(ours.exp() * ours).sum(-1).detach()
    part = by_hand(name, log_p, log_q.detach(), entropy, draws.uniforms(len(ids))[1], lengths)
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    paid = (10 * log_p).exp() - (10 * log_q.detach()).exp()
    value = kl if reward == "full_kl" else -paid * log_q
    wanted = plain(case, (value * part).sum() / len(ids))
    settings = {"alpha": 10.0} if reward == "power" else {}
    objective = Objective(reward, settings, Sampling(), "full", part=PARTS[name])
    for budget in (240, 8192):
        got, found, metrics = gradient_of(case, objective, budget, draws=draws)
        assert found.tokens.part.tolist() == pytest.approx(part.tolist(), abs=1e-9)
        assert found.count == metrics["tokens/loss"] == len(ids) and (part.min() == 0 or name == "remaining")
        torch.testing.assert_close(found.tokens.reward, -kl if reward == "full_kl" else paid, atol=1e-9, rtol=0)
        assert relative(got, wanted) < 1e-6
        assert metrics["optim/student_passes"] == 1 + (name in ("dial", "entropy", "abs", "remaining"))


@pytest.mark.parametrize("reward", ["log_ratio", "power", "zscore"])
def test_own_baseline_is_the_rewards_mean_over_the_vocabulary(case, reward):  # noqa: F811
    """For the log ratio that is -KL(q | p), so a token is paid d + KL."""
    ours, theirs, ids, _ = rows_of(case)
    ours_now = ours.detach()
    d, q = theirs - ours_now, ours_now.exp()
    sampled = d.gather(-1, ids)[:, 0]
    paid = {
        "log_ratio": d,
        "power": theirs.exp() ** 10 - q**10,
        "zscore": (d - sampled.mean()) / sampled.std(correction=0),
    }
    taken = (q * paid[reward]).sum(-1)
    final = paid[reward].gather(-1, ids)[:, 0] - taken
    if reward == "log_ratio":
        torch.testing.assert_close(final, sampled + (q * -d).sum(-1))
    wanted = plain(case, -(final * ours.gather(-1, ids)[:, 0]).sum() / len(ids))
    settings = {"alpha": 10.0} if reward == "power" else {}
    objective = Objective(reward, settings, Sampling(), "full", baseline="own")
    for budget in (240, 8192):
        got, found, _ = gradient_of(case, objective, budget)
        torch.testing.assert_close(found.tokens.reward, final, atol=1e-9, rtol=0)
        assert relative(got, wanted) < 1e-6


def test_extrapolated_refers_to_the_student_without_its_adapter(teacher_model, prompts, pair):
    """By the logits of the model whose adapter is switched off, after the adapter was moved away from zero."""
    student, other = load_student(load_config("bundled"), CPU, torch.float32), copy.deepcopy(teacher_model).float()
    model = student.model
    with torch.no_grad():
        for name, p in student.trainable().items():
            if "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    rollouts = make_rollouts(model, prompts[:3], pair, Sampling(), longest=12)
    rollouts = [dataclasses.replace(r, finish="length") for r in rollouts]
    objective = Objective("extrapolated", {"lam": 1.5})
    found = accumulate(student, Teacher(other), rollouts, objective, 8192, reference=SelfTeacher(student))
    wanted = []
    for r in rollouts:
        text, ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]]), torch.tensor(r.completion_ids)[:, None]
        logs = []
        with torch.no_grad():
            for call in (other, model):
                logs.append(call(input_ids=text).logits)
            with model.disable_adapter():
                logs.append(model(input_ids=text).logits)
        p, q, ref = (z[0, len(r.prompt_ids) - 1 : -1].log_softmax(-1).gather(-1, ids)[:, 0] for z in logs)
        wanted.append(1.5 * (p - ref) - (q - ref))
        assert (q - ref).abs().max() > 0.01
    torch.testing.assert_close(found.tokens.reward, torch.cat(wanted), atol=2e-4, rtol=0)
    assert found.metrics["optim/student_passes"] == 2


@pytest.mark.parametrize("mode", ["raw", "mask"])
def test_a_constant_reward_has_no_expected_gradient_but_for_a_masked_stop(mode):
    """By enumeration of all completions of up to two tokens over three ids, of which 0 stops: the sum before 1/N.

    Under `mask` the stop's own log-prob leaves the sum, and what is left pushes away from stopping: its gradient is that of
    the expected number of tokens that did not stop, held by hand below.
    """
    z = torch.tensor([[0.2, -0.3, 0.4], [0.5, 0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    log_q, total, weight = z.log_softmax(-1), 0.0, torch.eye(3, dtype=torch.float64)
    expected = 0.0
    for first, second in itertools.product(range(3), range(3)):
        if first == 0 and second:
            continue  # it stopped: one completion, not three
        ids = [first] if first == 0 else [first, second]
        chance = log_q[range(len(ids)), ids].sum().exp().detach()
        counted = [i for i in range(len(ids)) if mode == "raw" or ids[i] != 0]
        scores = score_tokens(
            z[counted], Head(weight), torch.tensor([ids[i] for i in counted], dtype=torch.long), Sampling(), "sampled",
            lambda q, rows: -torch.ones_like(q),
        )  # fmt: skip
        total = total + chance * scores.score.sum()
        expected = expected + chance * sum(log_q[i, ids[i]] for i in counted)
    (found,) = torch.autograd.grad(total, z)
    if mode == "raw":
        torch.testing.assert_close(found, torch.zeros_like(z), atol=1e-12, rtol=0)
    else:
        q = log_q.exp().detach()
        stop = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        wanted = torch.stack([q[0, 0] * (stop - q[0]), (1 - q[0, 0]) * q[1, 0] * (stop - q[1])])
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
