"""The fast decoder with its step made of few launches, for a card: 14 a layer and token, where the plain one has about 40.

Eight are matrix products: of the layers that read the same input the weights and the adapters' A matrices are one matrix,
and the B matrices another. The rest are Triton's (kernels/). Prompts go through the plain forward, over the same matrices.
It rounds where the plain decoder does, or less often.

It is for half precision, and for bases and adapters that are plain linear layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poweropd_lite.engines.decode import FastDecoder, Projection, Unlike
from poweropd_lite.kernels.attention import attend
from poweropd_lite.kernels.decode import add_rms, rotate_and_store, silu_mul
from poweropd_lite.models.adapter import ADAPTER
from poweropd_lite.models.loading import weight_of
from poweropd_lite.models.student import Student

ALIGNED = 16  # the ranks of a group are padded to a multiple: cuBLAS's fast products want rows of whole 16 bytes


class FusedDecoder(FastDecoder):
    """A decode.Decoder; raises Unlike for models that are decoded another way."""

    masked = False

    def __init__(self, student: Student) -> None:
        if student.dtype not in (torch.bfloat16, torch.float16):
            raise Unlike(f"it computes in {student.dtype}")
        super().__init__(student, Stacked)

    def prefill(self, ids: Tensor, valid: Tensor, length: int) -> Tensor:
        hidden = super().prefill(ids, valid, length)
        self.start = ids.shape[1] - valid.sum(-1)
        return hidden

    def make_room(self, lines: int, length: int) -> None:
        super().make_room(lines, length)
        self.start = torch.zeros(
            lines, dtype=torch.long, device=self.cos.device
        )  # the column of each prompt's first id

    @torch.no_grad()
    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        at = column.contiguous() if isinstance(column, Tensor) else torch.full((1,), column, device=token.device)
        position = position.contiguous()
        x, update = F.embedding(token, weight_of(self.embed)), None
        for i, layer in enumerate(self.layers):
            keys, values = self.keys[i], self.values[i]
            x, normed = add_rms(x, update, layer.norm.weight, self.eps, self.dtype)
            turn = self.cos, self.sin
            q = rotate_and_store(layer.qkv(normed), layer.qk_norm, layer.qk_eps, turn, position, at, keys, values)
            read = attend(q, keys, values, self.start, at, alive, layer.scale)
            x, normed = add_rms(x, layer.out(read), layer.mlp_norm.weight, self.eps, self.dtype)
            update = layer.down(silu_mul(layer.gate_up(normed)))
        return add_rms(x, update, self.norm.weight, self.eps, self.dtype)[1]

    def keep(self, lines: Tensor) -> None:
        super().keep(lines)
        self.start = self.start[lines]


class Stacked(Projection):
    """Linear layers that read the same input, as two products: [N, in] -> [N, sum of outs], the rows of a wider matrix.

    The first is with the weights [W; A], the second adds the A rows' part times B, in place. Weights in the compute dtype
    move into [W; A] for good and the layers' own become views of its rows, so that nothing is there twice; of float32
    masters it is a copy, which lives from `sync` to `release`.
    """

    def __init__(self, modules: list[Any], dtype: torch.dtype) -> None:
        super().__init__(modules, dtype)
        for base in self.bases:
            if type(base) is not nn.Linear:
                raise Unlike(f"its linear layers are {type(base).__name__}")
        self.outs = [base.out_features for base in self.bases]
        self.width = sum(self.outs)
        adapted = zip(modules, self.adapted, strict=True)
        self.ranks = [m.lora_A[ADAPTER].weight.shape[0] if yes else 0 for m, yes in adapted]
        self.moves = all(base.weight.dtype == dtype for base in self.bases)
        self.stack = self.up = torch.empty(0)  # [W; A] and the B matrices [padded sum of ranks, sum of outs], in blocks
        self.scale = 1.0

    def sync(self) -> None:
        if not len(self.stack):
            self._make_room()
        for rows, base in zip(self.stack[: self.width].split(self.outs), self.bases, strict=True):
            if not self.moves:
                rows.copy_(base.weight)
            elif base.weight.data_ptr() != rows.data_ptr():  # not moved yet, or put in another's place since
                rows.copy_(base.weight)
                base.weight.data = rows
        on = [m for m, yes in zip(self.modules, self.adapted, strict=True) if yes and not m.disable_adapters]
        # Without an adapter, or with one that is switched off, the weights alone are multiplied.
        self.weight = self.stack if on else self.stack[: self.width]
        self.scale = on[0].scaling[ADAPTER] if on else 1.0
        row = rank = 0
        for module, out, size in zip(self.modules, self.outs, self.ranks, strict=True):
            if on and size:
                up = module.lora_B[ADAPTER].weight.T
                scale = module.scaling[ADAPTER] / self.scale  # 1, but for adapters of several scales
                self.stack[self.width + rank :][:size] = module.lora_A[ADAPTER].weight
                self.up[rank : rank + size, row : row + out] = up if scale == 1 else up * scale
            row, rank = row + out, rank + size
        if any(base.bias is not None for base in self.bases):
            self.bias = torch.zeros(len(self.weight), dtype=self.dtype, device=self.weight.device)
            for part, base in zip(self.bias[: self.width].split(self.outs), self.bases, strict=True):
                if base.bias is not None:
                    part.copy_(base.bias)

    def _make_room(self) -> None:
        padded = -(-sum(self.ranks) // ALIGNED) * ALIGNED
        first = self.bases[0].weight
        self.stack = torch.zeros(self.width + padded, first.shape[1], dtype=self.dtype, device=first.device)
        self.up = torch.zeros(padded, self.width, dtype=self.dtype, device=first.device)

    def release(self) -> None:
        self.weight = torch.empty(0)
        if not self.moves:
            self.stack = self.up = self.weight

    def __call__(self, x: Tensor) -> Tensor:
        both = F.linear(x.to(self.dtype), self.weight, self.bias)
        out = both[:, : self.width]
        return out.addmm_(both[:, self.width :], self.up, alpha=self.scale) if both.shape[1] > self.width else out
