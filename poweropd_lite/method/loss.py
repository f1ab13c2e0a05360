"""The loss: a policy gradient with one reward a token, and the denominator that makes micro-batches add up.

`L = -(1/N) sum_t r_t * score_t` (PowerOPD, section 3). N is the number of unmasked sampled tokens of the whole optimizer
step, so its gradient does not depend on how that was cut. The pieces here return sums; `divide_gradients` brings in 1/N
once, after the last micro-batch and before the clip.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def policy_gradient_sum(score: Tensor, reward: Tensor) -> Tensor:
    """Returns -sum of reward * score over the tokens of the loss, a scalar; no gradient flows through the reward.

    `score` [N] carries the gradient, `reward` [N] is a constant. Masked tokens are not among them (batch.py).
    """
    return -(reward.detach() * score).sum()


def divide_gradients(parameters: Iterable[torch.nn.Parameter], count: int) -> None:
    """Divides every gradient in place by `count`, the N of the loss, which must be at least 1."""
    if count < 1:
        raise ValueError(f"a step needs at least one token in its loss to have a gradient, got N = {count}")
    torch._foreach_div_([p.grad for p in parameters if p.grad is not None], float(count))
