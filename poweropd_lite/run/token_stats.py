"""What a run keeps of a step's tokens for the report: counts by reward and by position, small arrays rather than raw tokens.

A token is counted in the bin that its reward falls into, and in the bin of its place in the completion. What lies outside
of the histogram's range is counted beside it, not put into its ends.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BINS = 100  # of the histogram
POSITIONS = 64  # bins of a completion, at most
AT_FIRST, EVERY = 10, 10  # kept at each of the first steps, then at every tenth and the last


def due(step: int, steps: int) -> bool:
    """Whether the tokens of `step` (from 1) of a run of `steps` are kept."""
    return step <= AT_FIRST or step % EVERY == 0 or step == steps


def token_stats(rewards: Tensor, lengths: Sequence[int], bounds: tuple[float, float], longest: int) -> dict[str, Any]:
    """Returns counts, sums and extremes of a step's N rewards [N], as JSON.

    `lengths` are the tokens of each rollout, in order, whose sum is N; `longest` is the most that a completion may have. Bin i
    of the histogram is [low + i w, low + (i + 1) w), the last one closed; bin i of the positions holds the places (from 0)
    from i position_width on. A reward that is not finite is counted in `not_finite` and nowhere else.
    """
    low, high = bounds
    values = rewards.detach().double().cpu()
    places = torch.cat([torch.arange(n) for n in lengths])
    finite = values.isfinite()
    values, places = values[finite], places[finite]
    inside = values[(values >= low) & (values <= high)]
    bins = ((inside - low) / (high - low) * BINS).long().clamp_max(BINS - 1)
    width = math.ceil(longest / POSITIONS)
    slots, count = places // width, math.ceil(longest / width)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, slots, values)
    least, most = (
        torch.zeros(count, dtype=torch.float64).scatter_reduce_(0, slots, values, f"a{end}", include_self=False)
        for end in ("min", "max")
    )
    return {
        "low": low,
        "high": high,
        "counts": torch.bincount(bins, minlength=BINS).tolist(),
        "below": int((values < low).sum()),
        "above": int((values > high).sum()),
        "not_finite": int((~finite).sum()),
        "position_width": width,
        "position_count": torch.bincount(slots, minlength=count).tolist(),
        "position_sum": [rounded(x) for x in sums.tolist()],
        "position_min": [rounded(x) for x in least.tolist()],
        "position_max": [rounded(x) for x in most.tolist()],
    }


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """Returns the text of each token; a character that several tokens spell is that of the last of them, the others are empty."""
    texts, pending = [], []
    for token in ids:
        pending.append(token)
        text = decode(pending)
        if text.endswith("\ufffd") and len(pending) < 4:  # UTF-8 spells a character in up to four bytes
            texts.append("")
        else:
            texts.append(text)
            pending = []
    return texts


def rounded(value: float) -> float | None:
    """Returns a number in six significant digits; None for one that JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
