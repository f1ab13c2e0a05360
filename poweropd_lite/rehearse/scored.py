"""Rollouts of a run's untrained student, and what models say of their tokens: the material of audit and advise.

The rollouts are those that training would draw at its steps 0, 1, ... if the student never changed: same prompts, same
random numbers. N tokens are those of the loss, in the order of the rollouts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed, checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import halving
from poweropd_lite.base.progress import Counting
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.method.batch import MicroBatch, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Engine, Rollout
from poweropd_lite.method.update import Model, Objective, over_tokens, token_logprobs
from poweropd_lite.models.student import Student
from poweropd_lite.rehearse.stats import truncation_facts
from poweropd_lite.run.session import Prepared, prepare, reward_settings

ALPHAS = (0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0)  # the paper's sweep


class Pace:
    """Shows how far the work is, and ends it with Stopped when a signal came."""

    def __init__(self, stop: StopRequest, counting: Counting, say: Callable[[str], None]) -> None:
        self.stop, self.counting, self.say = stop, counting, say

    def each(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Yields the batches, as long as no signal comes."""
        for batch in batches:
            self.stop.check()
            yield batch

    def show(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done, or raises Stopped."""
        self.stop.check()
        self.counting.show(name, done, total)


@dataclass(frozen=True)
class Drawn:
    """Sampled rollouts by step; the last step may be short of the batch."""

    steps: list[list[Rollout]]
    lengths: tuple[int, ...]  # tokens of the loss of each rollout, in order; 0 where only a masked stop was sampled
    sizes: tuple[int, ...]  # tokens of the loss of each step


def draw(ready: Prepared, engine: Engine, count: int, pace: Pace) -> Drawn:
    """Samples `count` rollouts, one batch of the config after the other."""
    size, steps = ready.config.batch_size, []
    engine.sync()
    for step, start in enumerate(range(0, count, size)):
        pace.show("sampling", start, count)
        steps.append(ready.sample(engine, step, min(size, count - start)))
    pace.show("sampling", count, count)
    engine.release()
    lengths = [loss_lengths(step, ready.objective.stops) for step in steps]
    if not any(map(sum, lengths)):
        raise UserError(
            f"every one of the {count} rollouts is a stop token alone, which stop mode mask leaves out: there is nothing to "
            "score; type --stop-mode raw, or a higher --temperature"
        )
    return Drawn(steps, tuple(n for step in lengths for n in step), tuple(map(sum, lengths)))


def by_step(
    ready: Prepared, drawn: Drawn, score: Callable[[Iterable[MicroBatch], int], Tensor], name: str, pace: Pace
) -> Tensor:
    """Returns score(a step's micro-batches, its N tokens) [N, ...] of all steps, one after the other, on the CPU."""
    budget, parts, done, total = ready.config.tokens_at_once, [], 0, len(drawn.lengths)
    before = torch.get_float32_matmul_precision()

    def of_step(rollouts: list[Rollout], size: int, budget: int) -> Tensor:
        batches = micro_batches(rollouts, budget, ready.objective.stops, ready.device)
        return score(pace.each(batches), size).cpu()

    torch.set_float32_matmul_precision("highest")  # a card's TF32 keeps 10 bits of 23
    try:
        for rollouts, size in zip(drawn.steps, drawn.sizes, strict=True):
            pace.show(name, done, total)
            longest = max(map(len, rollouts))
            part, budget, _ = halving(partial(of_step, rollouts, size), budget, longest, ready.device, pace.say)
            parts.append(part)
            done += len(rollouts)
    finally:
        torch.set_float32_matmul_precision(before)
    pace.show(name, total, total)
    return torch.cat(parts)


def log_probs(ready: Prepared, drawn: Drawn, model: Model, side: str, name: str, pace: Pace) -> Tensor:
    """Returns the model's log-prob of each of the N tokens: of the ids of `side`, "student" or "teacher"."""
    return by_step(ready, drawn, lambda batches, n: token_logprobs(model, batches, n, side), name, pace)


def score_student(
    ready: Prepared, drawn: Drawn, student: Student, samplings: list[Sampling], pace: Pace
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log q [N], and as float64 what truncation_facts says: [N] and [N, K, 4] for K samplings."""

    def facts(hidden: Tensor, batch: Any) -> Tensor:
        log_q = target_logprobs(hidden, student.head, batch.student_ids)
        pull, cut = truncation_facts(hidden, student.head, batch.student_ids, samplings)
        return torch.cat([log_q[:, None], pull[:, None], cut.flatten(1)], -1)

    columns = 2 + 4 * len(samplings)
    found = by_step(ready, drawn, lambda batches, n: over_tokens(student, batches, n, facts, columns), "student", pace)
    return found[:, 0], found[:, 1].double(), found[:, 2:].double().unflatten(-1, (-1, 4))


def prepare_to_score(config: Config, say: Callable[[str], None]) -> Prepared:
    """Returns session.prepare's of a run that is only scored: without evaluation, and without importance weights."""
    if config.importance_cap is not None:
        say("importance weights are left out: they multiply every reward alike")  # by 1, up to rounding
    return prepare(changed(config, eval_benchmarks=None, eval_every=0, importance_cap=None), say)


def reward_configs(config: Config, *others: str) -> dict[str, Config]:
    """Returns a config for each reward by its label: the power reward by rising alpha, `others`, and the config's own.

    Raises UserError where one of them does not go with the config's other settings.
    """
    wanted = [{"reward": "power", "alpha": alpha} for alpha in sorted({*ALPHAS, config.alpha})]
    wanted += [{"reward": name} for name in (*others, config.reward)]
    made = [checked(Config, {**config.model_dump(), **values}) for values in wanted]
    return {one.reward_label: one for one in made}


def rewards(config: Config, log_p: Tensor, log_q: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Returns the config's reward of each of the N tokens as float64, computed in the log-probs' float32 as training does.

    `sizes` are the tokens of each step, over which zscore takes its moments.
    """
    objective = Objective(config.reward, reward_settings(config))
    steps = zip(log_p.split(sizes), log_q.split(sizes), strict=True)
    return torch.cat([objective.pay(p, q) if len(p) else p for p, q in steps]).double()
