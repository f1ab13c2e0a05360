"""One optimizer step: the teacher scores the rollouts, the student learns from them.

In the paper's order: log p of every sampled token; then, micro-batch by micro-batch, one student forward that gives
log q, the reward and the loss together (`accumulate`); then 1/N, the clip and the optimizer (`take_step`). `full_kl`
replaces reward and score by the KL of whole distributions, and `zscore` needs a first pass for the step's moments.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.method import loss
from poweropd_lite.method.batch import MicroBatch, Stops, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling, reverse_kl, score_tokens
from poweropd_lite.method.reward import REWARDS, log_ratio_moments
from poweropd_lite.method.rollout import Rollout


class Model(Protocol):
    """What scores: a teacher, or a student."""

    @property
    def head(self) -> Tensor:
        """The head's weight [V, D]."""

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T]."""


class Learner(Model, Protocol):
    """What learns."""

    device: torch.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, in a fixed order."""


@dataclass(frozen=True)
class Objective:
    """What a student is to learn from its rollouts: all of a run's settings that the update reads."""

    reward: str  # a name in REWARDS
    settings: Mapping[str, float] = field(default_factory=dict)  # of the reward, such as {"alpha": 10.0}
    sampling: Sampling = Sampling()  # how the rollouts were drawn
    score: str = "sampled"  # whose log-prob carries the gradient: of the distribution "sampled" from, or the "full" one
    stops: Stops = Stops()
    importance_cap: float | None = None  # the most that a token's reward is multiplied by; None: by nothing

    def pay(self, log_p: Tensor, log_q: Tensor, moments: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns each token's reward [N]; for one `of_step`, `moments` are the step's, or else those of these tokens."""
        entry = REWARDS[self.reward]
        assert entry.pay is not None, f"{self.reward} compares whole distributions, and pays no single token"
        more: Mapping[str, float | Tensor] = {name: self.settings[name] for name in entry.settings}
        if entry.of_step:
            more = {**more, **(moments or log_ratio_moments(log_p, log_q))}
        return entry.pay(log_p, log_q, **more)

    def importance(self, log_q: Tensor, engine: Tensor) -> Tensor:
        """Returns min(q / q of the engine, cap) [N], which corrects for sampling from slightly other numbers; 1 where unknown."""
        return (log_q - engine).nan_to_num(0.0).exp().clamp_max(self.importance_cap or math.inf)


@dataclass
class StepTokens:
    """What a step learnt about its N tokens, each [N] on its device, in the order of the rollouts; float32 (float64)."""

    log_p: Tensor  # the teacher's log-prob of the token
    log_q: Tensor  # the student's
    reward: Tensor  # what it was paid (for full_kl: minus its position's KL)
    entropy: Tensor  # of the student's distribution, nats
    kept_mass: Tensor  # student mass of the ids that the sampler could draw
    added: Tensor  # 1 where the sampled id was outside that set
    engine: Tensor  # the engine's log q; NaN for a stop token, which may be scored under another id


@dataclass
class Gradient:
    """A step's gradient, in the parameters: the sum over its tokens, not yet divided by N."""

    count: int  # N
    loss: Tensor  # summed over the tokens
    tokens: StepTokens
    metrics: dict[str, float]


def accumulate(
    student: Learner,
    teacher: Model,
    rollouts: Sequence[Rollout],
    objective: Objective,
    token_budget: int,
    scaler: torch.amp.GradScaler | None = None,
    teacher_budget: int | None = None,
) -> Gradient:
    """Returns the gradient of a step on `rollouts`, in micro-batches of at most `token_budget` tokens.

    The teacher's are of `teacher_budget`, but for full_kl. `scaler` is for float16. The metrics are `tokens/loss`,
    `optim/student_passes` and seconds (docs/metrics.md).
    """
    started, scale = time.monotonic(), scaler or torch.amp.GradScaler(student.device.type, enabled=False)
    count = sum(loss_lengths(rollouts, objective.stops))
    entry, metrics = REWARDS[objective.reward], {"tokens/loss": count, "optim/student_passes": 0.0}
    wide = torch.float64 if student.head.dtype == torch.float64 else torch.float32
    tokens = StepTokens(*(torch.zeros(count, dtype=wide, device=student.device) for _ in range(7)))
    total_loss = torch.zeros((), device=student.device)
    for parameter in student.trainable().values():
        parameter.grad = None
    if count == 0:
        return Gradient(count, total_loss, tokens, metrics)
    batches = micro_batches(rollouts, token_budget, objective.stops, student.device)
    said: list[Tensor] = []  # of the teacher, for full_kl: hidden states [N', D_T] a micro-batch, never logits
    if entry.pay is None:
        with torch.no_grad():
            said = [batch.select(teacher.hidden(batch.ids)) for batch in batches]
    else:
        theirs = teacher_budget or token_budget
        own = batches if theirs == token_budget else micro_batches(rollouts, theirs, objective.stops, student.device)
        tokens.log_p.copy_(token_logprobs(teacher, own, count, "teacher"))
    _finish(student.device)
    metrics["time/teacher"] = time.monotonic() - started

    started, moments = time.monotonic(), None
    if entry.of_step:
        tokens.log_q.copy_(token_logprobs(student, batches, count, "student"))
        moments = log_ratio_moments(tokens.log_p, tokens.log_q)
    for i, batch in enumerate(batches):
        hidden, tokens.engine[batch.order] = batch.select(student.hidden(batch.ids)), batch.engine.to(wide)
        if entry.pay is None:
            loss_sum = _full_kl(student, hidden, teacher, said[i], batch, tokens, objective.sampling)
        else:
            loss_sum = _policy_gradient(student, hidden, batch, tokens, objective, moments)
        scale.scale(loss_sum).backward()
        total_loss += loss_sum.detach()
    _finish(student.device)
    metrics |= {"optim/student_passes": 1.0 + entry.of_step, "time/student": time.monotonic() - started}
    return Gradient(count, total_loss, tokens, metrics)


def take_step(
    student: Learner,
    optimizer: torch.optim.Optimizer,
    gradient: Gradient,
    max_grad_norm: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, float]:
    """Divides the gradient by N, clips it to `max_grad_norm`, takes the optimizer step and returns the metrics of it all.

    With no token in the loss, or loss or norm not finite, it is dropped: `optim/skipped` is 1, the weights are untouched.
    """
    metrics = gradient.metrics | {"optim/skipped": 1.0}
    if gradient.count == 0:
        return metrics
    started, scale = time.monotonic(), scaler or torch.amp.GradScaler(student.device.type, enabled=False)
    scale.unscale_(optimizer)
    parameters = list(student.trainable().values())
    loss.divide_gradients(parameters, gradient.count)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    total_loss = gradient.loss.item()
    if math.isfinite(total_loss) and math.isfinite(norm):
        scale.step(optimizer)
        metrics["optim/skipped"] = 0.0
    scale.update()
    optimizer.zero_grad(set_to_none=True)
    _finish(student.device)
    metrics["time/optimizer"] = time.monotonic() - started
    return metrics | {"loss": total_loss / gradient.count, "optim/grad_norm": norm}


@torch.no_grad()
def over_tokens(
    model: Model, batches: Iterable[MicroBatch], count: int, facts: Callable[[Tensor, MicroBatch], Tensor], columns: int
) -> Tensor:
    """Returns facts(hidden [N', D], batch) [N', columns] of all N tokens without gradient, [N, columns], float32 (float64)."""
    head = model.head
    wide = torch.float64 if head.dtype == torch.float64 else torch.float32
    out = torch.zeros(count, columns, dtype=wide, device=head.device)
    for batch in batches:
        out[batch.order] = facts(batch.select(model.hidden(batch.ids)), batch).to(wide)
    return out


def token_logprobs(model: Model, batches: Iterable[MicroBatch], count: int, side: str) -> Tensor:
    """Returns the model's log-prob of each of the N tokens [N]: of the ids of `side`, "student" or "teacher"."""

    def facts(hidden: Tensor, batch: MicroBatch) -> Tensor:
        ids = batch.student_ids if side == "student" else batch.teacher_ids
        return target_logprobs(hidden, model.head, ids)[:, None]

    return over_tokens(model, batches, count, facts, 1)[:, 0]


def _policy_gradient(
    student: Learner, hidden: Tensor, batch: MicroBatch, tokens: StepTokens, objective: Objective,
    moments: Mapping[str, Tensor] | None,
) -> Tensor:  # fmt: skip
    log_p, paid = tokens.log_p[batch.order], torch.empty_like(batch.engine, dtype=tokens.reward.dtype)

    def weigh(log_q: Tensor, rows: slice) -> Tensor:
        paid[rows] = objective.pay(log_p[rows], log_q, moments)
        capped = objective.importance_cap is not None
        return -paid[rows] * objective.importance(log_q, batch.engine[rows]) if capped else -paid[rows]

    scores = score_tokens(hidden, student.head, batch.student_ids, objective.sampling, objective.score, weigh)
    tokens.log_q[batch.order], tokens.reward[batch.order] = scores.logprob, paid
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = scores.entropy, scores.kept_mass
    tokens.added[batch.order] = scores.added
    return scores.score.sum()


def _full_kl(
    student: Learner, hidden: Tensor, teacher: Model, said: Tensor, batch: MicroBatch, tokens: StepTokens,
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    ids = batch.student_ids, batch.teacher_ids
    out = reverse_kl(hidden, student.head, said, teacher.head, *ids, sampling, lambda q, _: torch.ones_like(q))
    tokens.log_p[batch.order], tokens.log_q[batch.order] = out.teacher_logprob, out.logprob
    tokens.reward[batch.order] = -out.kl.detach()
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = out.entropy, out.kept_mass
    return out.kl.sum()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":  # whose work must be over for a phase's seconds to be its own
        torch.cuda.synchronize(device)
