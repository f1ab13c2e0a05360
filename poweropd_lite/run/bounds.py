"""Optimizer steps that leave weights which no training has: they are undone, and dropped like those that are not finite."""

from collections.abc import Callable

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.models.student import Student

LARGEST = 1e4  # a trained weight may be
FARTHEST = 1e3  # a step may move one
# AdamW moves a weight by no more than this times the learning rate: |m| / sqrt(v) at its most, by Cauchy-Schwarz over the
# decay rates 0.9 and 0.999.
ADAMW_MOST = 7.3


class Bounds:
    """Keeps a student's trained weights in their bounds. Only a step that might leave them costs a copy."""

    def __init__(self, student: Student, optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = list(student.trainable().values()), optimizer
        self.known: float | None = None  # the largest weight, as the last step left it
        self.moved = 0.0  # how far the last step that was undone had moved a weight

    def guard(self, take: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Takes a step and returns its metrics with `optim/largest_weight`; undone, it has `optim/skipped` 1.

        Raises UserError where weights left their bounds in a way that AdamW's arithmetic rules out (8-bit states can), so
        that there is nothing to go back to but the last checkpoint.
        """
        reach = ADAMW_MOST * self.optimizer.param_groups[0]["lr"]
        largest_before = self.largest() if self.known is None else self.known
        risky = not (reach <= FARTHEST and largest_before + reach <= LARGEST)
        before = [p.detach().clone() for p in self.parameters] if risky else []
        states = [_copy(self.optimizer.state.get(p, {})) for p in self.parameters] if risky else []
        metrics = take() | {"optim/largest_weight": (largest := self.largest())}
        pairs = zip(self.parameters, before, strict=True) if risky else ()
        moved = max((float((p.detach() - old).abs().max()) for p, old in pairs), default=0.0)
        if largest <= LARGEST and moved <= FARTHEST:
            self.known = largest
            return metrics
        if not risky:
            raise UserError(
                f"the step left a weight of {largest:.3g}, beyond {LARGEST:g}; nothing of it was saved. Start a new run with "
                "a lower --lr, or with --optimizer adamw"
            )
        with torch.no_grad():
            for parameter, old, state in zip(self.parameters, before, states, strict=True):
                parameter.copy_(old)
                self.optimizer.state.pop(parameter, None)
                if state:
                    self.optimizer.state[parameter] = state
        self.known, self.moved = largest_before, moved
        return metrics | {"optim/skipped": 1.0}

    def largest(self) -> float:
        """Returns the largest magnitude among the trained weights; NaN if one is."""
        return float(torch.nn.utils.get_total_norm([p.detach() for p in self.parameters], norm_type=float("inf")))


def _copy(state: dict) -> dict:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
