"""How a token is drawn: by inverting the cumulative distribution at a number fixed beforehand (rollout.Draws).

A block of ids first, by the blocks' masses, then an id of it: no cumulative sum of the whole vocabulary. On a card the masses
take one pass over the logits (kernels/head.py), which give the same ids for the same numbers but for rounding ties.

Shapes: C lines, V ids, N blocks of them.
"""

import torch
from torch import Tensor

from poweropd_lite.kernels import head as fused
from poweropd_lite.kernels.products import Head, write_logits
from poweropd_lite.method.logprobs import Sampling, kept_ids

BLOCK = 1024  # ids
_LAST = 1 - 2**-40  # so that no rounding draws what comes after the last possible id


def next_token(hidden: Tensor, head: Head, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (ids, log-prob at temperature 1, untruncated), each [C], for hidden states [C, D] and uniform numbers [C] in
    float64.
    """
    logits = hidden.new_empty(len(hidden), len(head.weight), dtype=head.wide)
    write_logits(hidden, head, logits)
    one_pass = fused.usable(hidden) and not sampling.truncates and sampling.temperature == 1.0
    return (draw_in_one_pass if one_pass else draw)(logits, sampling, noise)


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `next_token` does, for logits [C, V], which are changed: the first id whose cumulative mass exceeds the
    number's share of all mass.
    """
    ids, size = logits.shape[-1], min(logits.shape[-1], BLOCK)
    beside = _forbid(logits, sampling)
    top = logits.amax(-1, keepdim=True)
    mass = logits.new_zeros(len(logits), ids + -ids % size)
    torch.exp(logits.sub_(top), out=mass[:, :ids])
    everything = mass.sum(-1, keepdim=True).log()
    if beside is not None:
        everything = torch.logaddexp(everything, beside - top)
    if sampling.truncates or sampling.temperature != 1.0:
        scaled = (logits / sampling.temperature).masked_fill_(~kept_ids(logits, sampling), -torch.inf)
        torch.exp(scaled, out=mass[:, :ids])
    share, first = noise.double().clamp_max(_LAST)[:, None], noise.new_zeros((), dtype=torch.long)
    if ids > size:
        mass = mass.unflatten(-1, (-1, size))
        block, share = _block(mass.sum(-1), share)
        mass, first = mass.gather(1, block[..., None].expand(-1, -1, size)).squeeze(1), block * size
    drawn = _inside(mass, share, first, ids)
    return drawn.squeeze(-1), (logits.gather(-1, drawn) - everything).squeeze(-1)


def draw_in_one_pass(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw`, at temperature 1 without truncation."""
    ids, beside = logits.shape[-1], _forbid(logits, sampling)
    tops, sums = fused.block_sums(logits, BLOCK)
    top = tops.amax(-1, keepdim=True)
    masses = sums * (tops - top).exp_()
    everything = masses.sum(-1, keepdim=True).log() + top
    if beside is not None:
        everything = torch.logaddexp(everything, beside)
    block, share = _block(masses, noise.double().clamp_max(_LAST)[:, None])
    place = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    mass = (logits.gather(-1, place.clamp_max(ids - 1)) - top).exp_().masked_fill_(place >= ids, 0.0)
    drawn = _inside(mass, share, block * BLOCK, ids)
    return drawn.squeeze(-1), (logits.gather(-1, drawn) - everything).squeeze(-1)


def _forbid(logits: Tensor, sampling: Sampling) -> Tensor | None:
    """Takes the forbidden ids out of logits; returns the log of the mass that they had, [C, 1], if there are any."""
    if sampling.forbidden is None or not sampling.forbidden.numel():
        return None
    beside = logits.index_select(-1, sampling.forbidden).logsumexp(-1, keepdim=True)
    logits.index_fill_(-1, sampling.forbidden, -1e30)  # whose exp is 0
    return beside


def _block(masses: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the block [C, 1] at which the cumulative sum of masses [C, N] passes a share of it, and which share of the block
    is passed: a share, for the block's sum is rounded otherwise than its parts' will be.
    """
    wide = masses.double()
    ends = wide.cumsum(-1)
    point = share * ends[:, -1:]
    # (The clamps, here and below, are for logits that are not finite, whose step will be dropped.)
    block = torch.searchsorted(ends, point, right=True).clamp_max_(ends.shape[-1] - 1)
    return block, (1.0 - (ends.gather(-1, block) - point) / wide.gather(-1, block)).clamp_(0.0, _LAST)


def _inside(mass: Tensor, share: Tensor, first: Tensor, ids: int) -> Tensor:
    inside = mass.cumsum(-1, dtype=torch.float64)
    return (first + torch.searchsorted(inside, share * inside[:, -1:], right=True)).clamp_max_(ids - 1)
