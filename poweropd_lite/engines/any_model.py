"""Decoding through transformers' own forward, for students that decode.py does not know.

A preallocated KV cache from which lines can be dropped, and no CUDA graphs.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from poweropd_lite.engines.decode import prompt_mask
from poweropd_lite.models.loading import head_weight, model_body
from poweropd_lite.models.student import Student


class AnyDecoder:
    """A decode.Decoder: the student's body as transformers runs it, adapter and all."""

    graphs, masked = False, True

    def __init__(self, student: Student) -> None:
        self.student, self.dtype, self.cache = student, student.dtype, RowCache(0)

    @property
    def head(self) -> Tensor:
        return head_weight(self.student.model)

    def sync(self) -> None:
        pass  # the weights are the student's own

    def prefill(self, ids: Tensor, valid: Tensor, length: int) -> Tensor:
        self.cache = RowCache(length)
        return self._forward(ids, (valid.cumsum(-1) - 1).clamp_min(0), prompt_mask(valid))

    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        assert mask is not None
        for layer in self.cache.layers:
            layer.used = int(column)
        return self._forward(token[:, None], position[:, None], mask[:, None, None])

    def keep(self, lines: Tensor) -> None:
        for layer in self.cache.layers:
            layer.keep(lines)

    def drop_cache(self) -> None:
        self.cache = RowCache(0)

    release = drop_cache

    @torch.no_grad()
    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        self.student.model.eval()  # in training mode gradient checkpointing would leave the KV cache out
        body = model_body(self.student.model)
        with self.student.compute():
            out = body(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        return out.last_hidden_state[:, -1].to(self.dtype)


class RowCache(Cache):
    """A KV cache of fixed length whose lines can be dropped: no concatenation a token."""

    layers: list[Any]  # of _RowLayer

    def __init__(self, length: int) -> None:
        layer: Any = partial(_RowLayer, length)  # which transformers calls as the class that it asks for
        super().__init__(layer_class_to_replicate=layer)


class _RowLayer(CacheLayerMixin):
    """Keys and values [B, heads, length, head size], filled from the left."""

    is_sliding = False
    keys: Tensor
    values: Tensor

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
