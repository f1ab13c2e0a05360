"""The fast decoder with its step made of few launches, for a card: 10 a layer and token, where the plain one has about 40.

Four are matrix products: of the layers that read the same input the weights and the adapters' A matrices are one matrix. The
rest are Triton's (kernels/), and add what the B matrices make of it. Prompts go through the plain forward, over the same matrices.
It rounds where the plain decoder does, or less often.

It is for half precision, and for bases and adapters that are plain linear layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poweropd_lite.engines.decode import FastDecoder, Projection, Unlike
from poweropd_lite.kernels import skinny
from poweropd_lite.kernels.attention import attend
from poweropd_lite.kernels.decode import Product, add_rms, rotate_and_store, silu_mul
from poweropd_lite.models.adapter import ADAPTER
from poweropd_lite.models.loading import weight_of
from poweropd_lite.models.student import Student

LEAST = 16  # what ranks are padded to, at least, and to a power of 2: what a kernel's matrix product takes


class FusedDecoder(FastDecoder):
    """A decode.Decoder; raises Unlike for models that are decoded another way."""

    masked = False
    layers: list[Any]  # whose projections are Stacked

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
            q = rotate_and_store(
                layer.qkv.product(normed), layer.qk_norm, layer.qk_eps, turn, position, at, keys, values
            )
            read = attend(q, keys, values, self.start, at, alive, layer.scale)
            x, normed = add_rms(x, layer.out.product(read, split=True), layer.mlp_norm.weight, self.eps, self.dtype)
            update = layer.down.product(silu_mul(layer.gate_up.product(normed)), split=True)
        return add_rms(x, update, self.norm.weight, self.eps, self.dtype)[1]

    def keep(self, lines: Tensor) -> None:
        super().keep(lines)
        self.start = self.start[lines]


class Stacked(Projection):
    """Linear layers that read the same input, as one product with [W; A], and what it takes to add their adapters' part.

    Each layer has as many rows of A as the largest rank, padded, so that B is [rank, sum of outs]. Weights in the compute
    dtype move into [W; A] for good and the layers' own become views of its rows, so that nothing is there twice; of float32
    masters it is a copy, which lives from `sync` to `release`.
    """

    def __init__(self, modules: list[Any], dtype: torch.dtype) -> None:
        super().__init__(modules, dtype)
        for base in self.bases:
            if type(base) is not nn.Linear:
                raise Unlike(f"its linear layers are {type(base).__name__}")
        self.outs = [base.out_features for base in self.bases]
        self.width = sum(self.outs)
        adapted = [m for m, yes in zip(modules, self.adapted, strict=True) if yes]
        largest = max((m.lora_A[ADAPTER].weight.shape[0] for m in adapted), default=0)
        self.rank = max(LEAST, 1 << (largest - 1).bit_length()) if largest else 0
        self.moves = all(base.weight.dtype == dtype for base in self.bases)
        self.stack = self.up = torch.empty(0)  # [W; A] and B
        self.scale = 1.0

    def sync(self) -> None:
        if not len(self.stack):
            self._make_room()
        if not self.moves:
            for rows, base in zip(self.stack[: self.width].split(self.outs), self.bases, strict=True):
                rows.copy_(base.weight)
        on = [m for m, yes in zip(self.modules, self.adapted, strict=True) if yes and not m.disable_adapters]
        # Without an adapter, or with one that is switched off, the weights alone are multiplied.
        self.weight = self.stack if on else self.stack[: self.width]
        self.scale = on[0].scaling[ADAPTER] if on else 1.0
        row = 0
        for i, (module, out) in enumerate(zip(self.modules, self.outs, strict=True)):
            if module in on:
                a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight.T
                scale = module.scaling[ADAPTER] / self.scale  # 1, but for adapters of several scales
                self.stack[self.width + i * self.rank :][: len(a)] = a
                self.up[: len(b), row : row + out] = b if scale == 1 else b * scale
            row += out
        if any(base.bias is not None for base in self.bases):
            self.bias = torch.zeros(len(self.weight), dtype=self.dtype, device=self.weight.device)
            for part, base in zip(self.bias[: self.width].split(self.outs), self.bases, strict=True):
                if base.bias is not None:
                    part.copy_(base.bias)

    def _make_room(self) -> None:
        first = self.bases[0].weight
        rows = self.width + self.rank * len(self.bases)
        self.stack = torch.zeros(rows, first.shape[1], dtype=self.dtype, device=first.device)
        self.up = torch.zeros(self.rank, self.width, dtype=self.dtype, device=first.device)
        if self.moves:
            for part, base in zip(self.stack[: self.width].split(self.outs), self.bases, strict=True):
                part.copy_(base.weight)
                base.weight.data = part

    def release(self) -> None:
        self.weight = torch.empty(0)
        if not self.moves:
            self.stack = self.up = self.weight

    def product(self, x: Tensor, split: bool = False) -> Product:
        """Returns the product with `x` [B, in], all but what B adds; with `split` it may be in shares that are to be added up."""
        if skinny.fits(x, self.weight, self.bias, split):
            both = skinny.product(x, self.weight, split)
        else:
            both = F.linear(x, self.weight, self.bias)
        if both.shape[-1] == self.width:
            return Product(both)
        return Product(both[..., : self.width], both[..., self.width :], self.up, self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the whole [N, sum of outs], the rows of a wider matrix: for prompts, where launches are few."""
        out, low, up, scale = self.product(x.to(self.dtype))
        if low is not None and up is not None:
            for to, a, b in zip(out.split(self.outs, 1), low.split(self.rank, 1), up.split(self.outs, 1), strict=True):
                to.addmm_(a, b, alpha=scale)
        return out
