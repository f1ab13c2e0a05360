"""The fast decoder with its step made of few launches, for a card: 14 a layer and token, where the plain one has about 40.

Eight are matrix products: of the layers that read the same input the weights and the adapters' A matrices are one matrix, a
copy that lives from `sync` to `release`, and the B matrices another. The rest are Triton's (kernels/). Prompts go through
the plain forward, over the same matrices. It rounds where the plain decoder does, or less often.

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
        self.start = ids.shape[1] - valid.sum(-1)  # the column of each prompt's first id [B]
        return super().prefill(ids, valid, length)

    @torch.no_grad()
    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        at = column if isinstance(column, Tensor) else torch.full((1,), column, device=token.device)
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

    The first is with the weights [W; A], the second adds the A rows' part times B, in place.
    """

    weight: Tensor  # [sum of outs + padded sum of ranks, in]
    up: Tensor  # the B matrices [padded sum of ranks, sum of outs], each in its own block

    def __init__(self, modules: list[Any], dtype: torch.dtype) -> None:
        super().__init__(modules, dtype)
        for base in self.bases:
            if type(base) is not nn.Linear:
                raise Unlike(f"its linear layers are {type(base).__name__}")
        self.width = sum(base.out_features for base in self.bases)

    def sync(self) -> None:
        adapted = [
            m if yes and not m.disable_adapters else None for m, yes in zip(self.modules, self.adapted, strict=True)
        ]
        ranks = sum(m.lora_A[ADAPTER].weight.shape[0] for m in adapted if m is not None)
        padded, device = -(-ranks // ALIGNED) * ALIGNED, self.bases[0].weight.device
        shape = self.width + padded, self.bases[0].in_features
        if self.weight.shape != shape:
            self.weight = torch.empty(shape, dtype=self.dtype, device=device)
            self.weight[self.width + ranks :] = 0
            self.up = torch.zeros(padded, self.width, dtype=self.dtype, device=device)
        self.scale = next((m.scaling[ADAPTER] for m in adapted if m is not None), 1.0)
        row, rank = 0, 0
        for base, module in zip(self.bases, adapted, strict=True):
            rows = slice(row, row + base.out_features)
            self.weight[rows] = base.weight
            row = rows.stop
            if module is not None:
                a, b, scale = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight, module.scaling[ADAPTER]
                self.weight[self.width + rank :][: len(a)] = a
                self.up[rank : rank + len(a), rows] = b.T if scale == self.scale else b.T * (scale / self.scale)
                rank += len(a)
        self.bias = None
        if any(base.bias is not None for base in self.bases):
            self.bias = torch.zeros(shape[0], dtype=self.dtype, device=device)
            parts = self.bias[: self.width].split([base.out_features for base in self.bases])
            for part, base in zip(parts, self.bases, strict=True):
                if base.bias is not None:
                    part.copy_(base.bias)

    def release(self) -> None:
        self.weight = self.up = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        both = F.linear(x.to(self.dtype), self.weight, self.bias)
        out = both[:, : self.width]
        return out.addmm_(both[:, self.width :], self.up, alpha=self.scale) if len(self.up) else out
