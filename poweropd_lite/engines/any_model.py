"""Decoding through transformers' own forward, for students that decode.py does not know.

Each layer has the state that its kind needs: all keys and values, those of a sliding window, or what a convolution and a
recurrence carry on (transformers' own layer). Prompts are padded on the left, under a mask of ids [B, columns], from which
the model makes one for each kind. Lines can be dropped from any state. No CUDA graphs.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from poweropd_lite.kernels.products import Head
from poweropd_lite.models.loading import head_of, model_body
from poweropd_lite.models.student import Student

SPARE = 64  # columns beyond a window, so that it is moved once in as many tokens


class AnyDecoder:
    """A decode.Decoder: the student's body as transformers runs it, adapter and all."""

    graphs, masked = False, True

    def __init__(self, student: Student) -> None:
        self.student, self.dtype, self.cache = student, student.dtype, Cache(layers=[])

    @property
    def head(self) -> Head:
        return head_of(self.student.model)

    def sync(self) -> None:
        pass  # the weights are the student's own

    def prefill(self, ids: Tensor, valid: Tensor, length: int) -> Tensor:
        self.cache = cache_of(model_body(self.student.model).config, length)
        return self._forward(ids, (valid.cumsum(-1) - 1).clamp_min(0), valid)

    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        assert mask is not None
        for layer in self.cache.layers:
            if type(layer) is RowLayer:
                layer.seen = int(column)
        return self._forward(token[:, None], position[:, None], mask)

    def keep(self, lines: Any) -> None:
        self.cache.reorder_cache(lines)  # `batch_select_indices` leaves out what convolutions and recurrences carry on

    def drop_cache(self) -> None:
        self.cache = Cache(layers=[])

    release = drop_cache

    @torch.no_grad()
    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        body = model_body(self.student.model)
        if body.training:  # in that mode gradient checkpointing would leave the cache out
            self.student.model.eval()
        with self.student.compute():
            out = body(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        return out.last_hidden_state[:, -1].to(self.dtype)


def cache_of(config: Any, length: int) -> Cache:
    """Returns an empty cache of `length` columns for a model of this config."""
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = WindowLayer(length, layer.sliding_window)
        elif type(layer) is DynamicLayer:
            cache.layers[i] = RowLayer(length)
    return cache


class RowLayer(CacheLayerMixin):
    """Keys and values [B, heads, length, head size], filled from the left: no concatenation a token."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.room, self.seen, self.first = length, 0, 0  # columns so far, and the first that is held

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        lines, heads = key_states.shape[:2]
        self.keys = key_states.new_empty(lines, heads, self.room, key_states.shape[-1])
        self.values = value_states.new_empty(lines, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.seen - self.first
        self.seen, end = self.seen + key_states.shape[-2], start + key_states.shape[-2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen - self.first + query_length, self.first

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.room


class WindowLayer(RowLayer):
    """Those of the last `window` columns, the present one counted, and of at most SPARE more."""

    is_sliding = True

    def __init__(self, length: int, window: int) -> None:
        super().__init__(min(length, window + SPARE))
        self.window = window

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        new, first = key_states.shape[-2], self._first(key_states.shape[-2])
        if new > self.room:  # a prompt, which reads itself; its end alone is kept
            kept = self.window - 1
            self.seen = self.first = new - kept
            super().update(key_states[:, :, new - kept :], value_states[:, :, new - kept :])
            return key_states, value_states
        if first > self.first:
            held = slice(first - self.first, self.seen - self.first)
            for states in (self.keys, self.values):
                states[:, :, : self.seen - first] = states[:, :, held].clone()
            self.first = first
        return super().update(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self._first(query_length)
        return self.seen - first + query_length, first

    def _first(self, new: int) -> int:
        """The first column that is held once `new` ones come."""
        full = self.seen > 0 and self.seen + new - self.first > self.room
        return self.seen - self.window + 1 if full else self.first
