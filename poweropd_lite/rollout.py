"""The Rollout record, and the loop that samples it: a preallocated KV cache from which finished rows are dropped.

The random number of token t of a row is a function of (seed, purpose, step, row), drawn before decoding starts, so a
row's completion does not depend on its neighbours or on how the batch was cut.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from poweropd_lite.logprobs import Sampling, float_logits, kept_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

# A row's stream of random numbers is keyed by what it is for, so that evaluation never shares one with training.
TRAINING, EVALUATION = 0, 1


@dataclass(frozen=True)
class Rollout:
    """One prompt and one sampled completion."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # at least one; the stop id, if one was sampled, is the last
    sampling_logprobs: tuple[float, ...]  # of each completion id, under the distribution it was drawn from
    raw_logprobs: tuple[float, ...]  # the same under temperature 1, untruncated
    finish: str  # "stop": the last id is a stop id; "length": truncated at the longest completion

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def uniforms(seed: int, purpose: int, step: int, rows: "Sequence[int]", length: int) -> Tensor:
    """Returns random numbers in [0, 1) for `rows` of a step, [len(rows), length] float64, from (seed, step, row) alone."""
    draws = [np.random.default_rng([seed, purpose, step, row]).random(length) for row in rows]
    return torch.from_numpy(np.stack(draws))


@torch.no_grad()
def sample(
    body: nn.Module,
    head: Tensor,
    prompts: "Sequence[tuple[int, ...]]",
    noise: Tensor,
    *,
    sampling: Sampling,
    stop_ids: frozenset[int],
) -> list[Rollout]:
    """Returns one rollout a prompt, in order; at most noise.shape[1] new tokens each.

    `body` and `head` [V, D] are the model's two parts; `noise` [B, T] are uniform numbers, one a token. A token is drawn
    by inverting the cumulative distribution at its number.
    """
    device, (count, longest) = head.device, noise.shape
    width = max(map(len, prompts))
    ids = torch.zeros(count, width, dtype=torch.long)
    valid = torch.zeros(count, width + longest, dtype=torch.bool)
    valid[:, width:] = True
    for row, prompt in enumerate(prompts):  # prompts end at the same column, so that all rows decode side by side
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        valid[row, width - len(prompt) : width] = True
    ids, valid, noise = ids.to(device), valid.to(device), noise.to(device)
    positions = (valid[:, :width].cumsum(-1) - 1).clamp_min(0)
    # Padding looks at itself, for a row of attention that sees nothing is NaN.
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=device)
    mask = ((causal & valid[:, None, :width]) | itself)[:, None]
    stops = torch.tensor(sorted(stop_ids), device=device)

    cache = RowCache(width + longest)
    drawn = torch.zeros(count, longest, dtype=torch.long, device=device)
    logprobs = torch.zeros(2, count, longest, device=device)  # as sampled, raw
    lengths = torch.full((count,), longest, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # which row each line of the cache belongs to
    open_lines = torch.ones(count, dtype=torch.bool, device=device)
    for t in range(longest):
        out = body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        token, as_sampled, raw = draw(float_logits(out.last_hidden_state[:, -1], head), sampling, noise[rows, t])
        drawn[rows, t], logprobs[0, rows, t], logprobs[1, rows, t] = token, as_sampled, raw
        ends = torch.isin(token, stops) & open_lines
        lengths[rows[ends]], stopped[rows[ends]] = t + 1, True
        open_lines &= ~ends
        left = int(open_lines.sum())
        if left == 0:
            break
        positions = positions[:, -1:] + 1
        if left <= 0.85 * len(rows):  # a copy of the cache is worth it once enough lines are done
            keep = open_lines.nonzero().squeeze(-1)
            cache.keep(keep)
            rows, token, positions, open_lines = rows[keep], token[keep], positions[keep], open_lines[keep]
        ids, mask = token[:, None], valid[rows, None, None, : width + t + 1]
    return [
        Rollout(
            prompt_ids=tuple(prompt),
            completion_ids=tuple(row_ids[:n]),
            sampling_logprobs=tuple(row_sampled[:n]),
            raw_logprobs=tuple(row_raw[:n]),
            finish="stop" if stop else "length",
        )
        for prompt, row_ids, row_sampled, row_raw, n, stop in zip(
            prompts, drawn.tolist(), *logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True
        )
    ]


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (ids, log-prob as sampled, raw log-prob), each [C], for logits [C, V] and uniform numbers [C]."""
    raw = logits.log_softmax(-1)
    logprob = raw
    if not sampling.is_plain:
        kept = kept_ids(logits, sampling)
        logprob = (logits / sampling.temperature).masked_fill_(~kept, -torch.inf).log_softmax(-1)
    mass = logprob.exp().double().cumsum(-1)
    # The first id whose cumulative mass exceeds the number has a positive probability, always.
    point = noise.double().clamp_max(1 - 2**-40)[:, None] * mass[:, -1:]
    # (The clamp is for logits that are not finite, whose step will be dropped.)
    ids = torch.searchsorted(mass, point, right=True).clamp_max_(logits.shape[-1] - 1)
    return ids.squeeze(-1), logprob.gather(-1, ids).squeeze(-1), raw.gather(-1, ids).squeeze(-1)


class RowCache(Cache):
    """A KV cache of fixed length whose lines can be dropped: no concatenation a token, no copy but on `keep`."""

    def __init__(self, length: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _RowLayer(length))

    def keep(self, lines: Tensor) -> None:
        """Keeps only `lines` [K] int64, in order."""
        for layer in self.layers:
            layer.keep(lines)


class _RowLayer(CacheLayerMixin):
    """Keys and values [B, heads, length, head size], filled from the left."""

    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.used = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        lines, heads = key_states.shape[:2]
        self.keys = key_states.new_empty(lines, heads, self.length, key_states.shape[-1])
        self.values = value_states.new_empty(lines, heads, self.length, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.used = self.used, self.used + key_states.shape[-2]
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def keep(self, lines: Tensor) -> None:
        self.keys, self.values = self.keys[lines], self.values[lines]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.length
