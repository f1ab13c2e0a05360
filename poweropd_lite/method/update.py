"""One optimizer step: the teacher scores the rollouts, the student learns from them.

In the paper's order: log p of every sampled token; then, micro-batch by micro-batch, one student forward that gives
log q, the reward and the loss together (`accumulate`); then 1/N, the clip and the optimizer (`take_step`). `full_kl` and
its like replace reward and score by a divergence of whole distributions. `zscore` and docs/lab.md need a first pass.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from poweropd_lite.base.ranks import ALONE, Alone
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.kernels.products import Head
from poweropd_lite.method import loss
from poweropd_lite.method.batch import MicroBatch, Stops, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling, TokenKL, reverse_kl, score_tokens
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.rewards.paper import log_ratio_moments
from poweropd_lite.rewards.part import Part
from poweropd_lite.rewards.reward import Reward
from poweropd_lite.rewards.table import reads_rows, reward_of


class Model(Protocol):
    """What scores: a teacher, or a student."""

    @property
    def head(self) -> Head:
        """What makes logits of its hidden states."""

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives the final hidden states [B, T, D] of each of some right-padded ids [B, T], as they are asked for."""


class Learner(Model, Protocol):
    """What learns."""

    device: torch.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, in a fixed order."""


@dataclass(frozen=True)
class Objective:
    """What a student is to learn from its rollouts: all of a run's settings that the update reads."""

    reward: str  # a name in REWARDS, or a user's module:function
    settings: Mapping[str, float] = field(default_factory=dict)  # of the reward, such as {"alpha": 10.0}
    sampling: Sampling = Sampling()  # how the rollouts were drawn
    score: str = "sampled"  # whose log-prob carries the gradient: of the distribution "sampled" from, or the "full" one
    stops: Stops = Stops()
    importance_cap: float | None = None  # the most that a token's reward is multiplied by; None: by nothing
    own: Reward | None = None  # the user's, where `reward` names one
    baseline: str = "none"  # or "own": the reward's mean over the vocabulary is taken off
    part: Part = Part()  # which tokens stay in the loss, and how much each counts

    @property
    def entry(self) -> Reward:
        """What is known of its reward."""
        return self.own or reward_of(self.reward)

    @property
    def first_pass(self) -> bool:
        """Whether log q of the whole step must be known before the first token is paid."""
        return self.entry.of_step or self.part.reads_log_q

    def pay(self, log_p: Tensor, log_q: Tensor, of_step: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns each token's reward, for tensors of any one shape; moments that it needs `of_step` are else of these."""
        entry = self.entry
        assert entry.pay is not None, f"{self.reward} compares whole distributions, and pays no single token"
        if of_step is None:
            of_step = log_ratio_moments(log_p, log_q) if entry.of_step else {}
        return entry.pay(log_p, log_q, **self.settings, **{name: of_step[name] for name in entry.needs})

    def mean(self, log_p: Tensor, log_q: Tensor, of_step: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns sum_v q_v r_v [R, 1] of whole rows [R, V], and its parts [R, V]: a logprobs.Measure."""
        q = log_q.exp()
        paid = (q * self.pay(log_p, log_q, of_step)).where(q > 0, 0.0)
        return paid.sum(-1, keepdim=True), paid

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
    part: Tensor  # what its reward is multiplied by: 1, but for the objective's `part`


@dataclass
class Gradient:
    """A step's gradient, in the parameters: the sum over its tokens, not yet divided by N."""

    count: int  # N
    loss: Tensor  # summed over the tokens
    tokens: StepTokens
    metrics: dict[str, float]


def accumulate(
    student: Learner, teacher: Model, rollouts: Sequence[Rollout], objective: Objective, token_budget: int,
    scaler: torch.amp.GradScaler | None = None, teacher_budget: int | None = None, reference: Model | None = None,
    draws: Draws | None = None, ranks: Alone = ALONE,
) -> Gradient:  # fmt: skip
    """Returns the gradient of a step on `rollouts`, in micro-batches of at most `token_budget` tokens.

    The teacher's are of `teacher_budget`, but where whole distributions are read; `scaler` is for float16. A reward may ask
    for `reference`, the student without its adapter; `draws` are of two rows, for what is drawn at random. Of several
    `ranks` each is given all rollouts, works on its share and returns the whole. Metrics are in docs/metrics.md.
    """
    started, scale = time.monotonic(), scaler or torch.amp.GradScaler(student.device.type, enabled=False)
    lengths, rows, share = loss_lengths(rollouts, objective.stops), reads_rows(objective), ranks.share(len(rollouts))
    count, metrics = sum(lengths), {"tokens/loss": sum(lengths), "optim/student_passes": 0.0}
    tokens = StepTokens(*(torch.zeros(count, dtype=student.head.wide, device=student.device) for _ in range(8)))
    tokens.part.fill_(1.0)
    total_loss = torch.zeros((), device=student.device)
    for parameter in student.trainable().values():
        parameter.grad = None
    if count == 0:
        return Gradient(count, total_loss, tokens, metrics)
    cut = partial(micro_batches, rollouts, stops=objective.stops, device=student.device, own=share)
    batches, apart = cut(token_budget), any(rollout.teacher_prompt_ids for rollout in rollouts)
    join = partial(ranks.join, places=[batch.order for batch in batches])
    shown = cut(token_budget, side="teacher") if apart else batches
    said: list[Tensor] = []  # the teacher's hidden states [N', D_T], for whole distributions; never logits
    if rows:
        with torch.no_grad():
            said = [*map(MicroBatch.select, shown, teacher.hiddens([batch.ids for batch in shown]))]
            for batch, state in zip(shown, said, strict=True):
                if objective.entry.pay is not None or objective.part.reads_log_q:  # else it comes with the divergence
                    tokens.log_p[batch.order] = target_logprobs(state, teacher.head, batch.teacher_ids)
    else:
        own = cut(teacher_budget, side="teacher") if teacher_budget and teacher_budget != token_budget else shown
        tokens.log_p.copy_(token_logprobs(teacher, own, count, "teacher"))
    _finish(student.device)
    metrics["time/teacher"] = time.monotonic() - started

    started = time.monotonic()
    of_step = _first_pass(student, reference, batches, tokens, objective, join)
    if draws is not None:
        of_step["noise"], of_step["chance"] = draws.uniforms(count).to(tokens.part)
    if not objective.part.counts_all:
        tokens.part = objective.part.of(tokens.log_p, tokens.log_q, tokens.entropy, lengths, of_step.get("chance"))
    states = student.hiddens([batch.ids for batch in batches])
    for i, batch in enumerate(batches):
        hidden, tokens.engine[batch.order] = batch.select(next(states)), batch.engine.to(tokens.engine.dtype)
        compare: Callable[..., TokenKL] = reverse_kl
        if rows:
            heads = partial(reverse_kl, head=student.head, teacher_hidden=said[i], teacher_head=teacher.head)
            compare = partial(heads, ids=batch.student_ids, teacher_ids=batch.teacher_ids)
        learn = _whole if objective.entry.pay is None else _policy_gradient
        loss_sum = learn(student, hidden, compare, batch, tokens, objective, of_step)
        scale.scale(loss_sum).backward()
        total_loss += loss_sum.detach()
    join([getattr(tokens, each.name) for each in fields(tokens)])
    ranks.add(total_loss, list(student.trainable().values()))
    _finish(student.device)
    passes = 1.0 + objective.first_pass + ("log_ref" in objective.entry.needs)
    metrics |= {"optim/student_passes": passes, "time/student": time.monotonic() - started}
    return Gradient(count, total_loss, tokens, metrics)


def take_step(
    student: Learner, optimizer: torch.optim.Optimizer, gradient: Gradient, max_grad_norm: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, float]:  # fmt: skip
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
    norm, total_loss = torch.stack([nn.utils.clip_grad_norm_(parameters, max_grad_norm), gradient.loss]).tolist()
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
    model: Model, batches: Sequence[MicroBatch], count: int, facts: Callable[[Tensor, MicroBatch], Tensor], columns: int
) -> Tensor:
    """Returns facts(hidden [N', D], batch) [N', columns] of all N tokens without gradient, [N, columns], float32 (float64)."""
    out = torch.zeros(count, columns, dtype=model.head.wide, device=model.head.weight.device)
    selected = map(MicroBatch.select, batches, model.hiddens([batch.ids for batch in batches]))
    for batch in batches:
        out[batch.order] = facts(next(selected), batch).to(out.dtype)
    return out


def token_logprobs(model: Model, batches: Sequence[MicroBatch], count: int, side: str) -> Tensor:
    """Returns the model's log-prob of each of the N tokens [N]: of the ids of `side`, "student" or "teacher"."""
    if (ask := getattr(model, "token_logprobs", None)) is not None:  # a teacher that is served (models/served.py)
        return ask(batches, count)

    def facts(hidden: Tensor, batch: MicroBatch) -> Tensor:
        return target_logprobs(hidden, model.head, getattr(batch, f"{side}_ids"))[:, None]

    return over_tokens(model, batches, count, facts, 1)[:, 0]


def _first_pass(
    student: Model, reference: Model | None, batches: Sequence[MicroBatch], tokens: StepTokens, objective: Objective,
    join: Callable[[Sequence[Tensor]], None],
) -> dict[str, Tensor]:  # fmt: skip
    """Fills in log q and entropy, where the objective asks for them of the whole step, and returns what its reward needs."""
    entry, count, found = objective.entry, len(tokens.log_p), dict[str, Tensor]()

    def facts(hidden: Tensor, batch: MicroBatch) -> Tensor:
        scores = score_tokens(hidden, student.head, batch.student_ids, Sampling(), "full")
        return torch.stack([scores.logprob, scores.entropy], -1)

    if "log_ref" in entry.needs:
        assert reference is not None, f"{objective.reward} needs the student without its adapter"
        found["log_ref"] = token_logprobs(reference, batches, count, "student")
    if objective.part.keep == "entropy":
        tokens.log_q, tokens.entropy = over_tokens(student, batches, count, facts, 2).unbind(-1)
    elif objective.first_pass:
        tokens.log_q.copy_(token_logprobs(student, batches, count, "student"))
    join([tokens.log_p, tokens.log_q, tokens.entropy, *found.values()])
    return found | (log_ratio_moments(tokens.log_p, tokens.log_q) if entry.of_step else {})


def _policy_gradient(
    student: Learner, hidden: Tensor, compare: Callable[..., TokenKL], batch: MicroBatch, tokens: StepTokens,
    objective: Objective, of_step: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    log_p, part = tokens.log_p[batch.order], tokens.part[batch.order]
    paid, taken = torch.empty_like(part), torch.zeros_like(part)
    of_batch = {name: fact[batch.order] if fact.dim() else fact for name, fact in of_step.items()}
    if objective.baseline == "own":
        with torch.no_grad():
            mean = partial(objective.mean, of_step=of_step)
            taken = compare(hidden.detach(), sampling=Sampling(), measure=mean).kl

    def weigh(log_q: Tensor, rows: slice) -> Tensor:
        of_rows = {name: fact[rows] if fact.dim() else fact for name, fact in of_batch.items()}
        paid[rows] = objective.pay(log_p[rows], log_q, of_rows) - taken[rows]
        capped = objective.importance_cap is not None
        counted = -paid[rows] * part[rows]
        return counted * objective.importance(log_q, batch.engine[rows]) if capped else counted

    scores = score_tokens(hidden, student.head, batch.student_ids, objective.sampling, objective.score, weigh)
    tokens.log_q[batch.order], tokens.reward[batch.order] = scores.logprob, paid
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = scores.entropy, scores.kept_mass
    tokens.added[batch.order] = scores.added
    return scores.score.sum()


def _whole(
    student: Learner, hidden: Tensor, compare: Callable[..., TokenKL], batch: MicroBatch, tokens: StepTokens,
    objective: Objective, of_step: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    part, other = tokens.part[batch.order], objective.entry.compare
    measure = None if other is None else partial(other, **objective.settings)
    out = compare(hidden, sampling=objective.sampling, weigh=lambda _, rows: part[rows], measure=measure)
    tokens.log_p[batch.order], tokens.log_q[batch.order] = out.teacher_logprob, out.logprob
    tokens.reward[batch.order] = -out.plain
    tokens.entropy[batch.order], tokens.kept_mass[batch.order] = out.entropy, out.kept_mass
    return out.kl.sum()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":  # whose work must be over for a phase's seconds to be its own
        torch.cuda.synchronize(device)
