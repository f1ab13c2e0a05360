"""Rollouts of a run's untrained student, and what models say of their tokens: the material of audit and advise.

The rollouts are those that training would draw at its steps 0, 1, ... if the student never changed: same prompts, same
random numbers. N tokens are those of the loss, in the order of the rollouts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed, checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import halving
from poweropd_lite.base.progress import Counting
from poweropd_lite.checks.reward import check_reward, reward_settings
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.method.batch import MicroBatch, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import LOSS, Draws, Engine, Rollout
from poweropd_lite.method.update import Model, Objective, over_tokens, token_logprobs
from poweropd_lite.models.student import Student
from poweropd_lite.rehearse.stats import truncation_facts
from poweropd_lite.rewards.paper import log_ratio_moments
from poweropd_lite.run.session import Prepared, prepare

ALPHAS = (0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0)  # the paper's sweep


@dataclass(frozen=True)
class Drawn:
    """Sampled rollouts by step; the last step may be short of the batch."""

    steps: list[list[Rollout]]
    lengths: tuple[int, ...]  # tokens of the loss of each rollout, in order; 0 where only a masked stop was sampled
    sizes: tuple[int, ...]  # tokens of the loss of each step


def draw(ready: Prepared, engine: Engine, count: int, pace: Counting) -> Drawn:
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
    ready: Prepared, drawn: Drawn, score: Callable[[list[MicroBatch], int], Tensor], name: str, pace: Counting,
    side: str = "student",
) -> Tensor:  # fmt: skip
    """Returns score(a step's micro-batches, its N tokens) [N, ...] of all steps, one after the other, on the CPU.

    The prompts are those that the model of `side` reads.
    """
    budget, parts, done, total = ready.config.tokens_at_once, [], 0, len(drawn.lengths)
    before = torch.get_float32_matmul_precision()

    def of_step(rollouts: list[Rollout], size: int, budget: int) -> Tensor:
        batches = micro_batches(rollouts, budget, ready.objective.stops, ready.device, side)
        return score(batches, size).cpu()

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


def log_probs(ready: Prepared, drawn: Drawn, model: Model, side: str, name: str, pace: Counting) -> Tensor:
    """Returns the model's log-prob of each of the N tokens: of the ids of `side`, "student" or "teacher"."""
    return by_step(ready, drawn, lambda batches, n: token_logprobs(model, batches, n, side), name, pace, side)


def score_student(
    ready: Prepared, drawn: Drawn, student: Student, samplings: list[Sampling], pace: Counting
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
    beside = {"baseline": "none", "keep": "all", "weight": "none"}
    if named := [f"{name} {getattr(config, name)}" for name, off in beside.items() if getattr(config, name) != off]:
        say(f"{', '.join(named)} left out: rewards are compared with nothing beside them")
    alone = {"eval_benchmarks": None, "eval_every": 0, "eval_grader": None, "importance_cap": None, **beside}
    return prepare(changed(config, **alone), say)


def reward_configs(config: Config, *others: str) -> dict[str, Config]:
    """Returns a config for each reward by its label: the power reward by rising alpha, `others`, and the config's own.

    Of `others`, those that do not go with the config's other settings are left out. Raises UserError for a power reward that
    does not.
    """
    wanted = [{"reward": "power", "alpha": alpha} for alpha in sorted({*ALPHAS, config.alpha})]
    wanted += [{"reward": name} for name in others]
    made = []
    for values in wanted:
        settings = {**config.model_dump(), "reward_settings": {}, **values}
        try:
            made.append(config if values["reward"] == config.reward != "power" else checked(Config, settings))
        except UserError:
            if values["reward"] == "power":
                raise
    return {one.reward_label: one for one in [*made, config]}


def objective_of(config: Config, like: Objective) -> Objective:
    """Returns an objective that is as another but for the reward, which is of `config`."""
    own = check_reward(config) if ":" in config.reward else None
    return replace(like, reward=config.reward, settings=reward_settings(config), own=own)


def rewards(
    objective: Objective,
    log_p: Tensor,
    log_q: Tensor,
    sizes: tuple[int, ...],
    log_ref: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Returns the objective's reward of each of the N tokens as float64, computed in the log-probs' float32 as training does.

    `sizes` are the tokens of each step, over which zscore takes its moments; `log_ref` [N] is of the student without its
    adapter. No baseline is taken off.
    """
    ref, paid = (log_q if log_ref is None else log_ref).split(sizes), []
    for step, (p, q) in enumerate(zip(log_p.split(sizes), log_q.split(sizes), strict=True)):
        noise = Draws(seed, LOSS, step, (0,)).uniforms(len(p))[0].to(p)
        of_step = {"log_ref": ref[step], "noise": noise, **(log_ratio_moments(p, q) if len(p) else {})}
        paid.append(objective.pay(p, q, of_step) if len(p) else p)
    return torch.cat(paid).double()
