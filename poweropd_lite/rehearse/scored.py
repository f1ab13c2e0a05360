"""Rollouts of a run's untrained student, and what models say of their tokens: the material of audit and advise.

The rollouts are those that training would draw at its steps 0, 1, ... if the student never changed: same prompts, same
random numbers. N tokens are those of the loss, in the order of the rollouts.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.stop import StopRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from poweropd_lite.base.progress import Counting
    from poweropd_lite.method.batch import MicroBatch
    from poweropd_lite.method.rollout import Engine, Rollout
    from poweropd_lite.run.session import Prepared

ALPHAS = (0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0)  # the paper's sweep
STOPPING = "stopping; nothing is written (once more to stop at once)"


class Stopped(KeyboardInterrupt):
    """A signal asked to stop; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Pace:
    """Shows how far the work is, and ends it with Stopped when a signal came."""

    def __init__(self, stop: StopRequest, counting: "Counting", say: Callable[[str], None]) -> None:
        self.stop, self.counting, self.say = stop, counting, say

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.stop:
            raise Stopped(self.stop.signal)

    def show(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done, or raises Stopped."""
        self.check()
        self.counting.show(name, done, total)


@dataclass(frozen=True)
class Drawn:
    """Sampled rollouts by step; the last step may be short of the batch."""

    steps: "list[list[Rollout]]"
    lengths: tuple[int, ...]  # tokens of the loss of each rollout, in order; 0 where only a masked stop was sampled
    sizes: tuple[int, ...]  # tokens of the loss of each step

    @property
    def count(self) -> int:
        """How many rollouts there are."""
        return len(self.lengths)


def draw(ready: "Prepared", engine: "Engine", count: int, pace: Pace) -> Drawn:
    """Samples `count` rollouts, one batch of the config after the other."""
    from poweropd_lite.base.errors import UserError
    from poweropd_lite.method.batch import loss_ids
    from poweropd_lite.method.rollout import TRAINING, Draws
    from poweropd_lite.problems.prompts import step_indices

    config, steps = ready.config, []
    engine.sync()
    for step, start in enumerate(range(0, count, config.batch_size)):
        pace.show("sampling", start, count)
        size = min(config.batch_size, count - start)
        indices = step_indices(len(ready.prompts), config.batch_size, config.seed, step)[:size]
        draws = Draws(config.seed, TRAINING, step, tuple(range(size)))
        prompts = [ready.prompts[i].ids for i in indices]
        steps.append(engine.sample(prompts, draws, ready.sampling, config.max_new_tokens))
    pace.show("sampling", count, count)
    engine.release()
    lengths = [[len(loss_ids(r, config.stop_mode, ready.pair.teacher_stop)[0]) for r in step] for step in steps]
    if not any(map(sum, lengths)):
        raise UserError(
            f"every one of the {count} rollouts is a stop token alone, which stop mode mask leaves out: there is nothing to "
            "score; type --stop-mode raw, or a higher --temperature"
        )
    return Drawn(steps, tuple(n for step in lengths for n in step), tuple(map(sum, lengths)))


def over_tokens(
    ready: "Prepared",
    drawn: Drawn,
    model: Any,
    facts: "Callable[[Tensor, MicroBatch], Tensor]",
    columns: int,
    name: str,
    pace: Pace,
) -> "Tensor":
    """Returns facts(hidden [N', D], batch) [N', columns] of all N tokens, [N, columns], on the CPU, without gradient.

    `model` is a Student or a Teacher. Float32, float64 for a float64 model. Out of memory, it halves the micro-batches.
    """
    import torch

    from poweropd_lite.base.memory import halving
    from poweropd_lite.method.batch import micro_batches

    config, done = ready.config, 0
    wide = torch.float64 if model.head.dtype == torch.float64 else torch.float32
    budget, parts = config.token_budget, []

    def of_step(rollouts: "list[Rollout]", size: int, budget: int) -> "Tensor":
        out = torch.zeros(size, columns, dtype=wide)
        for batch in micro_batches(rollouts, budget, config.stop_mode, ready.pair.teacher_stop, ready.device):
            pace.check()
            with torch.no_grad(), exact_products():
                out[batch.order.cpu()] = facts(batch.select(model.hidden(batch.ids)), batch).to(wide).cpu()
        return out

    for rollouts, size in zip(drawn.steps, drawn.sizes, strict=True):
        pace.show(name, done, drawn.count)
        longest = max(map(len, rollouts))
        part, budget, _ = halving(
            lambda b, r=rollouts, n=size: of_step(r, n, b), budget, longest, ready.device, pace.say
        )
        parts.append(part)
        done += len(rollouts)
    pace.show(name, drawn.count, drawn.count)
    return torch.cat(parts)


def log_probs(ready: "Prepared", drawn: Drawn, model: Any, side: str, name: str, pace: Pace) -> "Tensor":
    """Returns the model's log-prob of each of the N tokens: `side` "student" scores the student's ids, "teacher" the teacher's."""
    from poweropd_lite.method.logprobs import Sampling, score_tokens

    def facts(hidden: "Tensor", batch: "MicroBatch") -> "Tensor":
        ids = batch.student_ids if side == "student" else batch.teacher_ids
        return score_tokens(hidden, model.head, ids, Sampling(), "full").logprob[:, None]

    return over_tokens(ready, drawn, model, facts, 1, name, pace)[:, 0]


def prepare_to_score(config: Config, say: Callable[[str], None]) -> "Prepared":
    """Returns session.prepare's of a run that is only scored: without evaluation and without importance weights.

    These multiply every reward alike, by numbers that are 1 up to rounding.
    """
    from poweropd_lite.run.session import prepare

    if config.importance_cap is not None:
        say("importance weights are left out: they multiply every reward alike")
    left_out = {"eval_benchmarks": None, "eval_every": 0, "importance_cap": None}
    return prepare(config.model_copy(update=left_out), say)


def reward_configs(config: Config, *others: str) -> dict[str, Config]:
    """Returns a config for each reward by its label: the power reward by rising alpha, `others`, and the config's own.

    Raises UserError where one of them does not go with the config's other settings.
    """
    wanted = [{"reward": "power", "alpha": alpha} for alpha in sorted({*ALPHAS, config.alpha})]
    wanted += [{"reward": name} for name in (*others, config.reward)]
    made = [checked(Config, {**config.model_dump(), **values}) for values in wanted]
    return {label(one): one for one in made}


def label(config: Config) -> str:
    """Returns the name of a config's reward, such as "power 10" or "tanh"."""
    return f"power {config.alpha:g}" if config.reward == "power" else config.reward


def rewards(config: Config, log_p: "Tensor", log_q: "Tensor", sizes: tuple[int, ...]) -> "Tensor":
    """Returns the config's reward of each of the N tokens as float64, computed in the log-probs' float32 as training does.

    `sizes` are the tokens of each step, over which zscore takes its moments.
    """
    import torch

    from poweropd_lite.method.reward import log_ratio_moments
    from poweropd_lite.method.update import token_reward

    parts = []
    for p, q in zip(log_p.split(sizes), log_q.split(sizes), strict=True):
        moments = log_ratio_moments(p, q) if config.reward == "zscore" and len(p) else None
        parts.append(token_reward(p, q, moments, config) if len(p) else p)
    return torch.cat(parts).double()


@contextlib.contextmanager
def exact_products() -> "Iterator[None]":
    """Float32 products are float32 inside the block: a card's TF32 keeps 10 bits of 23."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
