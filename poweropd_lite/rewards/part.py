"""A token's part in the loss beside its reward: which tokens stay in it (`keep`), and how much each counts (`weight`).

All tensors are [N], of a whole step's tokens in the order of its rollouts; `lengths` are the tokens of each rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NEED_LOG_Q = {"dial", "abs", "entropy", "remaining"}  # for which the student reads its rollouts once more


@dataclass(frozen=True)
class Part:
    """What of a step's tokens is learnt from; the settings' sentences are in base/objective.py."""

    keep: str = "all"
    keep_share: float = 1.0
    keep_over: str = "step"  # or "completion"
    dial_balance: float = 1.0
    weight: str = "none"
    weight_gain: float = 1.0
    horizon: int = 1

    @property
    def counts_all(self) -> bool:
        """Whether every token counts alike."""
        return self.keep == "all" and self.weight == "none"

    @property
    def reads_log_q(self) -> bool:
        """Whether log q of the whole step must be known first."""
        return bool({self.keep, self.weight} & NEED_LOG_Q)

    def of(
        self, log_p: Tensor, log_q: Tensor, entropy: Tensor, lengths: Sequence[int], noise: Tensor | None = None
    ) -> Tensor:
        """Returns what each token's reward is multiplied by, 0 for one that is left out. `noise` is for keep "random"."""
        d, part = log_p - log_q, log_q.new_ones(log_q.shape)
        ranks: dict[str, Callable[[], Any]] = {
            "dial": lambda: dial(log_p, log_q, self.dial_balance),
            "abs": d.abs,
            "entropy": lambda: entropy,  # TIP, arXiv 2604.14084
            "random": lambda: noise,
        }
        weights: dict[str, Callable[[], Tensor]] = {
            "remaining": lambda: remaining(d, lengths, self.weight_gain),
            "horizon": lambda: horizon(part, lengths, self.horizon),
        }
        if self.keep != "all":
            groups, rank = list(lengths) if self.keep_over == "completion" else [len(d)], ranks[self.keep]()
            for mine, of in zip(rank.split(groups), part.split(groups), strict=True):
                of.copy_(kept(mine, self.keep_share))
        return part if self.weight == "none" else part * weights[self.weight]()


def dial(log_p: Tensor, log_q: Tensor, balance: float) -> Tensor:
    """Returns |d|^(1 - b) |p - q|^b, what DIAL-OPD ranks by (arXiv 2610.11659, equation 5)."""
    rank = (log_p - log_q).abs() ** (1 - balance) * (log_p.exp() - log_q.exp()).abs() ** balance
    return rank.nan_to_num(0.0)  # for b above 1 where d is 0: inf * 0, and the limit is 0


def kept(rank: Tensor, share: float) -> Tensor:
    """Returns 1 for the share of tokens of the highest rank, at least one, and 0 for the others; of equal ones the first stay."""
    order = rank.argsort(descending=True, stable=True)
    count = max(1, round(share * len(rank)))
    return rank.new_zeros(rank.shape).index_fill_(0, order[:count], 1.0)


def remaining(d: Tensor, lengths: Sequence[int], gain: float) -> Tensor:
    """Returns 1 + gain (1 - s / S): s is the sum of |d| along the completion before the token, S all of it.

    IW-OPD (arXiv 2606.22600, algorithm 1): from 1 + gain at the first token down to about 1.
    """
    out = d.new_empty(d.shape)
    for mine, of in zip(d.abs().split(list(lengths)), out.split(list(lengths)), strict=True):
        of.copy_(1 + gain * (1 - (mine.cumsum(0) - mine) / mine.sum().clamp_min(1e-8)))
    return out


def horizon(like: Tensor, lengths: Sequence[int], first: int) -> Tensor:
    """Returns 1 for the first `first` tokens of each completion, 0 for those after."""
    out = like.new_zeros(like.shape)
    for of in out.split(list(lengths)):
        of[:first] = 1.0
    return out
