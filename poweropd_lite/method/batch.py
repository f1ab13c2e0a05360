"""Rollouts cut into micro-batches: packed by length to a token budget, with the positions and ids that the loss is about.

N, the denominator, is known here already, from ids, finish reasons and the stop mode, before any forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poweropd_lite.method.rollout import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Some rollouts of a step. N' is the number of their tokens that are in the loss; a masked stop token is not."""

    ids: Tensor  # [B, T] int64, prompt then completion, padded on the right
    lines: Tensor  # [N'] int64: which of the B rollouts a token belongs to
    columns: Tensor  # [N'] int64: the position whose hidden state predicts it
    student_ids: Tensor  # [N'] int64: the id whose log q counts, in reward and loss
    teacher_ids: Tensor  # [N'] int64: the id whose log p counts
    order: Tensor  # [N'] int64: the token's place among the step's N tokens

    def select(self, hidden: Tensor) -> Tensor:
        """Returns the hidden states [N', D] that predict the tokens of the loss, out of [B, T, D]."""
        return hidden[self.lines, self.columns]

    def __len__(self) -> int:
        return self.student_ids.numel()


def loss_ids(rollout: Rollout, stop_mode: str, teacher_stop: int) -> tuple[list[int], list[int]]:
    """Returns the (student ids, teacher ids) of a rollout's tokens that are in the loss; they start at its first token.

    Only the final stop token is ever treated apart (the table of stop modes in docs/method.md); a truncated completion
    stays whole.
    """
    ids = list(rollout.completion_ids)
    if rollout.finish != "stop" or stop_mode == "raw":
        return ids, ids
    body = ids[:-1]
    if stop_mode == "mask":
        return body, body
    if stop_mode == "relabel":
        return [*body, teacher_stop], [*body, teacher_stop]
    return ids, [*body, teacher_stop]


def loss_lengths(rollouts: Sequence[Rollout], stop_mode: str) -> list[int]:
    """Returns how many tokens of each rollout are in the loss."""
    return [len(r.completion_ids) - (stop_mode == "mask" and r.finish == "stop") for r in rollouts]


def count_tokens(rollouts: Sequence[Rollout], stop_mode: str) -> int:
    """Returns N, the number of tokens in the loss of a step."""
    return sum(loss_lengths(rollouts, stop_mode))


def micro_batches(
    rollouts: Sequence[Rollout], token_budget: int, stop_mode: str, teacher_stop: int, device: torch.device
) -> list[MicroBatch]:
    """Returns the rollouts as micro-batches of at most `token_budget` ids each, padding counted, longest first.

    A rollout longer than the budget stands alone. Rollouts without a token in the loss are left out.
    """
    ids = [loss_ids(rollout, stop_mode, teacher_stop) for rollout in rollouts]
    starts = torch.tensor([0] + [len(student) for student, _ in ids]).cumsum(0).tolist()
    by_length = sorted(range(len(rollouts)), key=lambda i: (-len(rollouts[i]), i))
    groups: list[list[int]] = []
    for i in by_length:
        if not ids[i][0]:
            continue
        if groups and (len(groups[-1]) + 1) * len(rollouts[groups[-1][0]]) <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_micro_batch([(rollouts[i], *ids[i], starts[i]) for i in group], device) for group in groups]


def _micro_batch(group: list[tuple[Rollout, list[int], list[int], int]], device: torch.device) -> MicroBatch:
    width = max(len(rollout) for rollout, *_ in group)
    padded = torch.zeros(len(group), width, dtype=torch.long)
    parts: list[list[int]] = [[], [], [], [], []]
    for line, (rollout, student_ids, teacher_ids, start) in enumerate(group):
        padded[line, : len(rollout)] = torch.tensor(rollout.prompt_ids + rollout.completion_ids)
        count, first = len(student_ids), len(rollout.prompt_ids) - 1  # a position predicts the id after it
        columns = range(first, first + count)
        for part, new in zip(
            parts, ([line] * count, columns, student_ids, teacher_ids, range(start, start + count)), strict=True
        ):
            part.extend(new)
    return MicroBatch(padded.to(device), *(torch.tensor(part, dtype=torch.long, device=device) for part in parts))
