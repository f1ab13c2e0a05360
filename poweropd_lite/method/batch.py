"""Rollouts cut into micro-batches: packed by length to a token budget, with the positions and ids that the loss is about.

N, the denominator, is known here already, from ids, finish reasons and the stop mode, before any forward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poweropd_lite.method.rollout import Rollout


@dataclass(frozen=True)
class Stops:
    """What the loss makes of a completion's final stop token: the table of stop modes in docs/method.md."""

    mode: str = "mask"  # "mask", "raw", "relabel" or "cross_eos"
    teacher: int = 0  # the teacher's own stop id, for "relabel" and "cross_eos"


@dataclass(frozen=True)
class LossTokens:
    """A rollout's tokens that are in the loss; they start at its first token."""

    student: tuple[int, ...]  # the ids whose log q counts
    teacher: tuple[int, ...]  # the ids whose log p counts
    sampled: int  # how many of them, from the first on, stand there as they were sampled: all but a final stop


def loss_tokens(rollout: Rollout, stops: Stops) -> LossTokens:
    """Returns a rollout's tokens in the loss. Only the final stop token is ever treated apart; a truncated completion stays whole."""
    ids, theirs = rollout.completion_ids, (stops.teacher,)
    if rollout.finish != "stop":
        return LossTokens(ids, ids, len(ids))
    body, own = ids[:-1], ids[-1:]
    ends = {"mask": ((), ()), "raw": (own, own), "relabel": (theirs, theirs), "cross_eos": (own, theirs)}
    return LossTokens(body + ends[stops.mode][0], body + ends[stops.mode][1], len(body))


def loss_lengths(rollouts: Sequence[Rollout], stops: Stops) -> list[int]:
    """Returns how many tokens of each rollout are in the loss; their sum is N."""
    return [len(loss_tokens(rollout, stops).student) for rollout in rollouts]


@dataclass(frozen=True)
class MicroBatch:
    """Some rollouts of a step. N' is the number of their tokens that are in the loss; a masked stop token is not."""

    ids: Tensor  # [B, T] int64, prompt then completion, padded on the right
    lines: Tensor  # [N'] int64: which of the B rollouts a token belongs to
    columns: Tensor  # [N'] int64: the position whose hidden state predicts it
    student_ids: Tensor  # [N'] int64: the id whose log q counts, in reward and loss
    teacher_ids: Tensor  # [N'] int64: the id whose log p counts
    order: Tensor  # [N'] int64: the token's place among the step's N tokens
    engine: Tensor  # [N'] float32: the engine's log-prob; NaN for a final stop, which may be scored under another id

    def select(self, hidden: Tensor) -> Tensor:
        """Returns the hidden states [N', D] that predict the tokens of the loss, out of [B, T, D]."""
        return hidden[self.lines, self.columns]


def micro_batches(
    rollouts: Sequence[Rollout], token_budget: int, stops: Stops, device: torch.device, side: str = "student",
    own: slice = slice(None),
) -> list[MicroBatch]:  # fmt: skip
    """Returns rollouts, all or the `own` ones, as micro-batches of at most `token_budget` ids each, padding counted, longest first.

    A rollout longer than the budget stands alone. Rollouts without a token in the loss are left out. The prompts are those
    that the model of `side` reads; both sides' micro-batches hold the same rollouts in the same order.
    """
    tokens = [loss_tokens(rollout, stops) for rollout in rollouts]
    starts = torch.tensor([0] + [len(t.student) for t in tokens]).cumsum(0).tolist()
    by_length = sorted((i for i in range(len(tokens))[own] if tokens[i].student), key=lambda i: (-len(rollouts[i]), i))
    groups: list[list[int]] = []
    for i in by_length:
        if groups and (len(groups[-1]) + 1) * len(rollouts[groups[-1][0]]) <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_micro_batch([(rollouts[i], tokens[i], starts[i]) for i in group], device, side) for group in groups]


def _micro_batch(group: list[tuple[Rollout, LossTokens, int]], device: torch.device, side: str) -> MicroBatch:
    prompts = [(side == "teacher" and r.teacher_prompt_ids) or r.prompt_ids for r, *_ in group]
    texts = [prompt + rollout.completion_ids for prompt, (rollout, *_) in zip(prompts, group, strict=True)]
    padded = np.zeros((len(group), max(map(len, texts))), np.int64)
    engine: list[float] = []
    for line, (rollout, tokens, _) in enumerate(group):
        padded[line, : len(texts[line])] = texts[line]
        engine += [*rollout.logprobs[: tokens.sampled], *[math.nan] * (len(tokens.student) - tokens.sampled)]
    counts = np.array([len(tokens.student) for _, tokens, _ in group])
    lines = np.arange(len(group)).repeat(counts)
    place = np.arange(len(lines)) - (counts.cumsum() - counts)[lines]
    columns = np.array([len(prompt) - 1 for prompt in prompts])[lines] + place  # they predict the next
    order = np.array([start for *_, start in group])[lines] + place
    ids = (np.array([i for _, t, _ in group for i in getattr(t, side)], np.int64) for side in ("student", "teacher"))
    parts = (padded, lines, columns, *ids, order, np.array(engine, np.float32))  # (torch.tensor of lists is slow)
    return MicroBatch(*(torch.from_numpy(part).to(device) for part in parts))
