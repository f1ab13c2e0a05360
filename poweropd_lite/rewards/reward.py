"""What is known of a reward before one is paid: its function, what that reads, and the range of what it gives."""

from __future__ import annotations  # so that names and limits are known without torch

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reward:
    """How a token is paid, or else how whole distributions are compared.

    `pay(log p, log q, ...)` gives a detached reward a token, for tensors of any one shape. `compare(log p, log q, ...)`
    gives a divergence a row [R, 1] of log-probs [R, V], and its derivative by each q [R, V]. Both take settings by name.
    """

    pay: Callable[..., Tensor] | None = None  # None: whole distributions are compared
    compare: Callable[..., tuple[Tensor, Tensor]] | None = (
        None  # None, as `pay`: reverse KL, in place (method/logprobs.py)
    )
    settings: tuple[str, ...] = ()  # fields of the config that it takes by name; reward_settings are any function's
    needs: tuple[str, ...] = ()  # of the whole step, by name too: "mean" and "std" of the log ratio, "log_ref", "noise"
    bounded: bool = True
    range: tuple[float, float] = (-1.0, 1.0)  # of a token's reward; what one that is not bounded seldom leaves
    unit: str | None = None  # the setting that `range` is a multiple of
    cap: str | None = None  # the setting that it is never above; tokens that it held are counted
    source: str = ""  # where it was published

    @property
    def of_step(self) -> bool:
        """Whether log q of the whole step must be known before the first token is paid."""
        return "mean" in self.needs

    @property
    def defaults(self) -> dict[str, float]:
        """The settings that its function alone knows, with their defaults."""
        function = self.pay or self.compare
        known = inspect.signature(function).parameters.values() if function else ()
        return {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def limits(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Returns `range` under these settings."""
        scale = settings[self.unit] if self.unit else 1.0
        return scale * self.range[0], scale * self.range[1]
