"""How close a student is to its teacher, by sampled tokens alone: the measure of progress where nobody knows the answers.

KL(q | p) a token is estimated by the mean of log q - log p over tokens drawn from q (the student): unbiased where they were
drawn at temperature 1 from the whole vocabulary, as the held-out ones are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from poweropd_lite.base.memory import halving
from poweropd_lite.engines.guard import sample_whole
from poweropd_lite.method.batch import Stops, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import CLOSENESS, Draws, Engine, Rollout
from poweropd_lite.method.update import Model, token_logprobs
from poweropd_lite.problems.prompts import Prompt


@dataclass(frozen=True)
class Closeness:
    """What is known of N tokens of some completions, in nats a token."""

    kl: float  # the estimate of KL(student | teacher)
    kl_error: float  # its standard error: completions are independent, the tokens of one are not; NaN of a single one
    teacher_logprob: float  # mean log p of the tokens
    tokens: int  # N
    completions: int
    length: float = math.nan  # mean tokens of a completion, its stop token counted
    stop_share: float = math.nan  # share of completions that end by themselves
    by_completion: tuple[tuple[float, int], ...] = ()  # of each, the sum of log q - log p and its tokens

    def record(self) -> dict[str, float | None]:
        """Returns all of it but what is of single completions by name, None for what is not known."""
        known = asdict(self)
        del known["by_completion"]
        return {name: value if math.isfinite(value) else None for name, value in known.items()}


def closeness(log_p: Tensor, log_q: Tensor, lengths: Sequence[int]) -> Closeness:
    """Returns the estimate from the log-probs [N] of both models, of completions of `lengths` tokens, in order.

    The error is that of a ratio of sums: sqrt(B / (B - 1) sum_i (S_i - KL n_i)^2) / N for B completions of n_i tokens whose
    log ratios sum to S_i (delta method).
    """
    ratio, count = (log_q - log_p).double().cpu(), sum(lengths)
    sums = [part.sum().item() for part in ratio.split(list(lengths))]
    kl, many = sum(sums) / count, sum(n > 0 for n in lengths)
    spread = sum((s - kl * n) ** 2 for s, n in zip(sums, lengths, strict=True))
    error = math.sqrt(spread * many / (many - 1)) / count if many > 1 else math.nan
    each = tuple(zip(sums, lengths, strict=True))
    return Closeness(kl, error, log_p.double().mean().item(), count, many, by_completion=each)


def difference_error(first: Sequence[tuple[float, int]], second: Sequence[tuple[float, int]]) -> float:
    """Returns the standard error of the difference of two estimates on the same B prompts, given `by_completion` of both.

    sqrt(B / (B - 1) sum_i (e_i - f_i)^2), where e_i = (S_i - KL n_i) / N is what completion i adds to the first's error and
    f_i to the second's: what a prompt does to both alike is no error of their difference. NaN of a single prompt.
    """
    added = []
    for each in (first, second):
        count = sum(n for _, n in each)
        kl = sum(s for s, _ in each) / count
        added.append([(s - kl * n) / count for s, n in each])
    spread, many = (
        sum((e - f) ** 2 for e, f in zip(*added, strict=True)),
        sum(n + m > 0 for (_, n), (_, m) in zip(first, second, strict=True)),
    )
    return math.sqrt(spread * many / (many - 1)) if many > 1 else math.nan


def shown(rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> list[Rollout]:
    """Returns rollouts of some prompts with what the teacher reads in place of each."""
    return [replace(r, teacher_prompt_ids=p.teacher_ids) for r, p in zip(rollouts, prompts, strict=True)]


def measure(
    engine: Engine,
    teacher: Callable[[], Model],
    prompts: Sequence[Prompt],
    forbidden: Tensor,
    longest: int,
    seed: int,
    lines: int,
    token_budget: int,
    tick: Callable[[int], bool] = lambda done: True,
) -> tuple[Closeness, Rollout] | None:
    """Returns how close the weights of the engine's last sync are to the teacher, on one completion a prompt, and the first.

    `teacher` gives it once all is sampled. `lines` are sampled at a time, and scored in micro-batches of at most
    `token_budget` tokens; log q is the engine's own. Stop tokens are left out, for the two may end differently. `tick` is
    told how many completions are there before each batch; when it says no, None is returned.
    """
    rollouts: list[Rollout] = []
    for start in range(0, len(prompts), lines):
        if not tick(start):
            return None
        part = prompts[start : start + lines]
        draws = Draws(seed, CLOSENESS, 0, tuple(range(start, start + len(part))))
        drawn = sample_whole(engine, [prompt.ids for prompt in part], draws, Sampling(forbidden=forbidden), longest)
        rollouts += shown(drawn, part)
    engine.release()
    masked, device = Stops("mask"), forbidden.device
    lengths = loss_lengths(rollouts, masked)
    length = sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts)
    stopped = sum(rollout.finish == "stop" for rollout in rollouts) / len(rollouts)
    if not sum(lengths):
        return Closeness(math.nan, math.nan, math.nan, 0, 0, length, stopped), rollouts[0]
    scorer = teacher()
    # An offloaded teacher holds the states of all that it is given at once.
    at_once = len(rollouts) if getattr(scorer, "streamed", None) is None else lines
    parts = [rollouts[start : start + at_once] for start in range(0, len(rollouts), at_once)]

    def scored(budget: int) -> Tensor:
        batches = ((part, micro_batches(part, budget, masked, device, "teacher")) for part in parts)
        return torch.cat(
            [token_logprobs(scorer, cut, sum(loss_lengths(part, masked)), "teacher") for part, cut in batches if cut]
        )

    log_p, _, _ = halving(scored, token_budget, max(map(len, rollouts)), device, print)
    ours = [x for rollout, n in zip(rollouts, lengths, strict=True) for x in rollout.logprobs[:n]]
    found = closeness(log_p.cpu(), torch.tensor(ours, dtype=torch.float64), lengths)
    return replace(found, length=length, stop_share=stopped), rollouts[0]
