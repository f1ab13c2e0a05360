"""How close a student is to its teacher, by sampled tokens alone: the measure of progress where nobody knows the answers.

KL(q | p) a token is estimated by the mean of log q - log p over tokens drawn from q (the student): unbiased where they were
drawn at temperature 1 from the whole vocabulary, as the held-out ones are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from poweropd_lite.base.memory import halving
from poweropd_lite.method.batch import Stops, loss_lengths, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import CLOSENESS, Draws, Engine, Rollout
from poweropd_lite.method.update import Model, token_logprobs


@dataclass(frozen=True)
class Closeness:
    """What is known of N tokens of some completions, in nats a token."""

    kl: float  # the estimate of KL(student | teacher)
    kl_error: float  # its standard error: completions are independent, the tokens of one are not; NaN of a single one
    teacher_logprob: float  # mean log p of the tokens
    tokens: int  # N
    completions: int

    def record(self) -> dict[str, float | None]:
        """Returns all of it by name, None for what is not known."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def closeness(log_p: Tensor, log_q: Tensor, lengths: Sequence[int]) -> Closeness:
    """Returns the estimate from the log-probs [N] of both models, of completions of `lengths` tokens, in order.

    The error is that of a ratio of sums: sqrt(B / (B - 1) sum_i (S_i - KL n_i)^2) / N for B completions of n_i tokens whose
    log ratios sum to S_i (delta method).
    """
    ratio, count = (log_q - log_p).double().cpu(), sum(lengths)
    sizes = torch.tensor([n for n in lengths if n], dtype=torch.float64)
    sums = torch.stack([part.sum() for part in ratio.split([n for n in lengths if n])])
    kl, many = sums.sum().item() / count, len(sizes)
    spread = (sums - kl * sizes).square().sum().item()
    error = math.sqrt(spread * many / (many - 1)) / count if many > 1 else math.nan
    return Closeness(kl, error, log_p.double().mean().item(), count, many)


def measure(
    engine: Engine,
    teacher: Callable[[], Model],
    prompts: Sequence[tuple[int, ...]],
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
        rollouts += engine.sample(part, draws, Sampling(forbidden=forbidden), longest)
    engine.release()
    masked, device = Stops("mask"), forbidden.device
    lengths = loss_lengths(rollouts, masked)
    if not (count := sum(lengths)):
        return Closeness(math.nan, math.nan, math.nan, 0, 0), rollouts[0]
    scorer = teacher()
    log_p, _, _ = halving(
        lambda budget: token_logprobs(scorer, micro_batches(rollouts, budget, masked, device), count, "teacher"),
        token_budget,
        max(map(len, rollouts)),
        device,
        print,
    )
    ours = [x for rollout, n in zip(rollouts, lengths, strict=True) for x in rollout.logprobs[:n]]
    return closeness(log_p.cpu(), torch.tensor(ours, dtype=torch.float64), lengths), rollouts[0]
