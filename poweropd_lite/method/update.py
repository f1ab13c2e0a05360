"""One optimizer step: the teacher scores the rollouts, the student learns from them.

In the paper's order: log p of every sampled token; then, micro-batch by micro-batch, one student forward that gives log q,
the reward and the loss together (`accumulate`); then 1/N, the clip and the optimizer (`take_step`). `full_kl` replaces reward and score by the KL of
whole distributions, and `zscore` needs a first pass for the step's mean and deviation.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.method import loss, reward
from poweropd_lite.method.batch import MicroBatch, count_tokens, micro_batches
from poweropd_lite.method.logprobs import Sampling, reverse_kl, score_tokens
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.run.metrics import distribution

_PLAIN = Sampling()


@dataclass
class StepTokens:
    """What a step learnt about its N tokens, each [N] on its device, in the order of the rollouts; float32 (float64 for a float64 student)."""

    log_p: Tensor  # the teacher's log-prob of the token
    log_q: Tensor  # the student's
    reward: Tensor  # what it was paid (for full_kl: minus its position's KL)
    entropy: Tensor  # of the student's distribution, nats
    kept_mass: Tensor  # student mass of the ids that the sampler could draw
    added: Tensor  # 1 where the sampled id was outside that set
    engine: Tensor  # the engine's log q; NaN for a stop token, which may be scored under another id

    @classmethod
    def empty(cls, count: int, like: Tensor) -> "StepTokens":
        """Returns room for `count` tokens, on the device of the head `like`."""
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        return cls(*(torch.zeros(count, dtype=wide, device=like.device) for _ in range(7)))


@dataclass
class Gradient:
    """A step's gradient, in the parameters: the sum over its tokens, not yet divided by N."""

    count: int  # N
    loss: Tensor  # summed over the tokens
    tokens: StepTokens
    metrics: dict[str, float]


def update(
    student: Student,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rollouts: Sequence[Rollout],
    sampling: Sampling,
    teacher_stop: int,
    config: Config,
) -> dict[str, float]:
    """Takes one optimizer step on `rollouts` and returns its metrics (docs/metrics.md): `accumulate`, then `take_step`."""
    gradient = accumulate(student, teacher, scaler, rollouts, sampling, teacher_stop, config, config.token_budget)
    return take_step(student, optimizer, scaler, gradient, config)


def accumulate(
    student: Student,
    teacher: Teacher,
    scaler: torch.amp.GradScaler,
    rollouts: Sequence[Rollout],
    sampling: Sampling,
    teacher_stop: int,
    config: Config,
    token_budget: int,
) -> Gradient:
    """Returns the gradient of a step on `rollouts`, in micro-batches of at most `token_budget` tokens."""
    started = time.monotonic()
    count = count_tokens(rollouts, config.stop_mode)
    metrics: dict[str, float] = {"tokens/loss": count, "optim/student_passes": 0.0}
    tokens = StepTokens.empty(count, student.head)
    total_loss = torch.zeros((), device=student.device)
    for parameter in student.trainable().values():
        parameter.grad = None
    if count == 0:
        return Gradient(count, total_loss, tokens, metrics)
    tokens.engine.copy_(torch.tensor(engine_logprobs(rollouts, config.stop_mode)))
    batches = micro_batches(rollouts, token_budget, config.stop_mode, teacher_stop, student.device)
    kept_hidden = _score_by_teacher(teacher, batches, tokens, keep=config.reward == "full_kl")
    _finish(student.device)
    metrics["time/teacher"] = time.monotonic() - started

    started = time.monotonic()
    moments = None
    if config.reward == "zscore":
        tokens.log_q.copy_(student_logprobs(student, batches, count))
        moments = reward.log_ratio_moments(tokens.log_p, tokens.log_q)
        metrics["optim/student_passes"] += 1
    for i, batch in enumerate(batches):
        hidden = batch.select(student.hidden(batch.ids))
        if config.reward == "full_kl":
            loss_sum = _full_kl(student, teacher, hidden, kept_hidden[i], batch, tokens, sampling)
        else:
            loss_sum = _policy_gradient(student, hidden, batch, tokens, sampling, moments, config)
        scaler.scale(loss_sum).backward()
        total_loss += loss_sum.detach()
    metrics["optim/student_passes"] += 1
    _finish(student.device)
    metrics["time/student"] = time.monotonic() - started
    return Gradient(count, total_loss, tokens, metrics)


def take_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    gradient: Gradient,
    config: Config,
) -> dict[str, float]:
    """Divides the gradient by N, clips it, takes the optimizer step and returns the metrics of it all.

    The step is dropped, with `optim/skipped` 1 and the weights untouched, if no token is in the loss or if the loss or the
    gradient norm is not finite.
    """
    metrics = gradient.metrics | {"optim/skipped": 1.0}
    if gradient.count == 0:
        return metrics
    started = time.monotonic()
    scaler.unscale_(optimizer)
    parameters = list(student.trainable().values())
    loss.divide_gradients(parameters, gradient.count)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
    total_loss = gradient.loss.item()
    if math.isfinite(total_loss) and math.isfinite(norm):
        scaler.step(optimizer)
        metrics["optim/skipped"] = 0.0
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    _finish(student.device)
    metrics["time/optimizer"] = time.monotonic() - started
    metrics |= {"loss": total_loss / gradient.count, "optim/grad_norm": norm}
    metrics |= _describe(gradient.tokens, config)
    if config.reward == "full_kl":  # whose teacher sees every id, kept or not
        del metrics["sampling/added_share"]
    return metrics


@torch.no_grad()
def student_logprobs(student: Student, batches: list[MicroBatch], count: int) -> Tensor:
    """Returns the student's log q of the `count` tokens of the loss [N], by a pass without gradient."""
    out = StepTokens.empty(count, student.head).log_q
    for batch in batches:
        hidden = batch.select(student.hidden(batch.ids))
        out[batch.order] = score_tokens(hidden, student.head, batch.student_ids, _PLAIN, "full").logprob
    return out


def engine_logprobs(rollouts: Sequence[Rollout], stop_mode: str) -> list[float]:
    """Returns the engine's log-probs of the tokens of the loss, in their order; NaN for a stop token that is in the loss.

    In some stop modes that one is scored under another id than was sampled.
    """
    values: list[float] = []
    for r in rollouts:
        values += r.logprobs[:-1] if r.finish == "stop" else r.logprobs
        if r.finish == "stop" and stop_mode != "mask":
            values.append(math.nan)
    return values


def _score_by_teacher(teacher: Teacher, batches: list[MicroBatch], tokens: StepTokens, keep: bool) -> list[Tensor]:
    """Fills in log p; for full_kl it keeps the hidden states ([N', D_T] a micro-batch) instead, never logits."""
    kept = []
    for batch in batches:
        hidden = batch.select(teacher.hidden(batch.ids))
        if keep:
            kept.append(hidden)
        else:
            scores = score_tokens(hidden, teacher.head, batch.teacher_ids, _PLAIN, "full")
            tokens.log_p[batch.order] = scores.logprob.to(tokens.log_p.dtype)
    return kept


def _policy_gradient(
    student: Student,
    hidden: Tensor,
    batch: MicroBatch,
    tokens: StepTokens,
    sampling: Sampling,
    moments: tuple[Tensor, Tensor] | None,
    config: Config,
) -> Tensor:
    scores = score_tokens(hidden, student.head, batch.student_ids, sampling, config.score)
    log_p, log_q = tokens.log_p[batch.order], scores.logprob
    paid = token_reward(log_p, log_q, moments, config)
    tokens.log_q[batch.order], tokens.reward[batch.order] = log_q, paid
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = scores.entropy, scores.kept_mass
    tokens.added[batch.order] = scores.added
    if config.importance_cap is not None:
        paid = paid * importance(log_q, tokens.engine[batch.order], config.importance_cap)
    return loss.policy_gradient_sum(scores.score, paid)


def _full_kl(
    student: Student,
    teacher: Teacher,
    hidden: Tensor,
    teacher_hidden: Tensor,
    batch: MicroBatch,
    tokens: StepTokens,
    sampling: Sampling,
) -> Tensor:
    out = reverse_kl(hidden, student.head, teacher_hidden, teacher.head, batch.student_ids, batch.teacher_ids, sampling)
    tokens.log_p[batch.order], tokens.log_q[batch.order] = out.teacher_logprob, out.logprob
    tokens.reward[batch.order] = -out.kl.detach()
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = out.entropy, out.kept_mass
    return loss.full_kl_sum(out.kl)


def token_reward(log_p: Tensor, log_q: Tensor, moments: tuple[Tensor, Tensor] | None, config: Config) -> Tensor:
    """Returns the config's reward for each token [N]; `moments` are the step's own, for zscore."""
    if config.reward == "power":
        return reward.power(log_p, log_q, alpha=config.alpha)
    if config.reward == "clip":
        return reward.clip(log_p, log_q, limit=config.clip_limit)
    if config.reward == "tanh":
        return reward.tanh(log_p, log_q, tau=config.tau)
    if config.reward == "zscore":
        return reward.zscore(log_p, log_q, mean=moments[0], std=moments[1])
    return reward.log_ratio(log_p, log_q)


def importance(log_q: Tensor, engine: Tensor, cap: float) -> Tensor:
    """Returns min(q / q of the engine, cap) [N], which corrects for sampling from slightly other numbers; 1 where unknown."""
    return (log_q - engine).nan_to_num(0.0).exp().clamp_max(cap)


def _describe(tokens: StepTokens, config: Config) -> dict[str, float]:
    facts = {
        **distribution("reward", tokens.reward),
        **distribution("log_ratio", tokens.log_p - tokens.log_q),
        "reward/positive_share": (tokens.reward > 0).double().mean().item(),
        "logprob/teacher": tokens.log_p.mean().item(),
        "logprob/student": tokens.log_q.mean().item(),
        "entropy": tokens.entropy.mean().item(),
        "sampling/kept_mass": tokens.kept_mass.mean().item(),
        "sampling/added_share": tokens.added.mean().item(),
    }
    if config.importance_cap is not None:
        weight = importance(tokens.log_q, tokens.engine, config.importance_cap)
        facts["importance/mean"] = weight.mean().item()
        capped = (tokens.log_q - tokens.engine).nan_to_num(0.0).exp() > config.importance_cap
        facts["importance/capped_share"] = capped.double().mean().item()
    return facts


def _finish(device: torch.device) -> None:
    """Waits for the card, so that a phase's seconds are its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
