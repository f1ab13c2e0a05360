"""What stands between the matrix products of one decoded token, each as one launch: reads once, float32 inside, rounds once.

What a LoRA adapter adds to a product is added here, where the product is read: a launch of its own for B would cost more than
the work.

B lines, D hidden size, Hq and Hk heads of size Dh, T columns of the cache, R a layer's rank, padded to a power of 2.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LINES = 16  # lines that a program takes at once where it multiplies by B: the least a matrix product takes
COLUMNS = 64  # of silu's numbers, a program
TILE, TILE_WARPS = 1 << 15, 16  # numbers of B that add_rms holds at once, in as many warps


class Product(NamedTuple):
    """Of one or more layers on the same input: `out` [B, outs], to which scale x `low` times `up` [R, outs] is still to be added.

    `low` [B, layers x R] has R columns for each layer, `up` is contiguous; None without an adapter. Rows of `out` and `low`
    may be parts of wider ones, those of one matrix. add_rms takes both as the shares of sums too, [S, B, ...] in float32.
    """

    out: Tensor
    low: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return 0 if self.up is None else len(self.up)


def add_rms(x: Tensor, update: Product | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the residual stream x + update [B, D], in its own dtype, and its RMS norm times `weight`, in `dtype`.

    Without an update the stream is `x` itself.
    """
    lines, size = x.shape
    total = x if update is None else torch.empty_like(x)
    normed = torch.empty(lines, size, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(size)
    out, low, up, scale = update or (None, None, None, 1.0)
    rank = update.rank if update else 0
    strides = (0, 0) if out is None else (out.stride(-2), out.stride(0))
    splits = len(out) if out is not None and out.ndim == 3 else 1
    _add_rms[(lines,)](
        x, out, low, up, weight, total, normed, *strides, size, scale, eps, splits, rank, max(1, min(rank, TILE // block)), block,
        num_warps=TILE_WARPS if rank else 4 if block <= 4096 else 8,
    )  # fmt: skip
    return total, normed


def rotate_and_store(
    qkv: Product, norm: Tensor | None, eps: float, turn: tuple[Tensor, Tensor], position: Tensor, column: Tensor,
    keys: Tensor, values: Tensor,
) -> Tensor:  # fmt: skip
    """Norms and rotates the queries and keys of one token a line; returns the queries [B, Hq, Dh].

    `qkv` is the product of the three layers [B, (Hq + 2 Hk) Dh], `norm` the heads' norm weights [Hq + Hk, Dh], if there are
    any; `turn` is cos and sin [P, Dh], sin with rotate_half's sign in it; `position` [B]. Keys and values are written at
    `column` [1] of the cache [B, Hk, T, Dh].
    """
    lines, kv_heads, columns, size = keys.shape
    out, low, up, scale = qkv
    heads = out.shape[1] // size - 2 * kv_heads
    q = torch.empty(lines, heads, size, dtype=out.dtype, device=out.device)
    _rotate_and_store[(heads + 2 * kv_heads, triton.cdiv(lines, LINES))](
        out, low, up, norm, *turn, position, column, q, keys, values, lines, out.stride(0), columns * size, scale, eps,
        qkv.rank, heads, kv_heads, size, max(16, triton.next_power_of_2(size // 2)), LINES, num_warps=4,
    )  # fmt: skip
    return q


def silu_mul(gate_up: Product) -> Tensor:
    """Returns silu(gate) * up [B, M], for the products of both side by side [B, 2 M]."""
    both, low, up, scale = gate_up
    lines, size = both.shape[0], both.shape[1] // 2
    out = torch.empty(lines, size, dtype=both.dtype, device=both.device)
    grid = triton.cdiv(size, COLUMNS), triton.cdiv(lines, LINES)
    _silu_mul[grid](both, low, up, out, lines, both.stride(0), size, scale, gate_up.rank, COLUMNS, LINES, num_warps=4)
    return out


@triton.jit
def _add_rms(
    x, update, low, up, weight, total, normed, update_stride, split_stride, size, scale, eps,
    SPLITS: tl.constexpr, RANK: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One line. Its R numbers are few enough that B is read once for each, CHUNK rows at a time."""
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + line * size + at, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        for split in tl.static_range(0, SPLITS):
            share = update + split * split_stride + line * update_stride
            value += tl.load(share + at, mask=inside, other=0.0).to(tl.float32)
        if low is not None:
            for first in tl.static_range(0, RANK, CHUNK):
                rank = first + tl.arange(0, CHUNK)
                part = tl.zeros([CHUNK], tl.float32)
                for split in tl.static_range(0, SPLITS):
                    part += tl.load(low + split * split_stride + line * update_stride + rank).to(tl.float32)
                part = part.to(normed.dtype.element_ty).to(tl.float32) * scale
                rows = tl.load(up + rank[:, None] * size + at[None, :], mask=inside[None, :], other=0.0)
                value += tl.sum(rows.to(tl.float32) * part[:, None], axis=0)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + line * size + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    value *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + line * size + at, value.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_store(
    qkv, low, up, norm, cos, sin, position, column, q, keys, values, lines, stride, head_stride, scale, eps,
    RANK: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    """One head of some lines; its halves are turned into each other."""
    HALF: tl.constexpr = SIZE // 2
    head = tl.program_id(0)
    line = (tl.program_id(1) * LINES + tl.arange(0, LINES)).to(tl.int64)
    there = line < lines
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    mask = there[:, None] & inside[None, :]
    source = qkv + line[:, None] * stride + head * SIZE + at[None, :]
    a = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    if low is not None:
        layer = (head >= HEADS).to(tl.int32) + (head >= HEADS + KV_HEADS).to(tl.int32)
        rank = tl.arange(0, RANK)
        part = tl.load(low + line[:, None] * stride + layer * RANK + rank[None, :], mask=there[:, None], other=0.0)
        rows = up + rank[:, None] * ((HEADS + 2 * KV_HEADS) * SIZE) + head * SIZE + at[None, :]
        a += tl.dot(part, tl.load(rows, mask=inside[None, :], other=0.0)) * scale
        b += tl.dot(part, tl.load(rows + HALF, mask=inside[None, :], other=0.0)) * scale
    place = tl.load(column).to(tl.int64) * SIZE
    if head >= HEADS + KV_HEADS:
        written = values + (line * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * head_stride + place + at[None, :]
        tl.store(written, a.to(values.dtype.element_ty), mask=mask)
        tl.store(written + HALF, b.to(values.dtype.element_ty), mask=mask)
    else:
        if norm is not None:
            root = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / SIZE + eps)[:, None]
            a *= root * tl.load(norm + head * SIZE + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            b *= root * tl.load(norm + head * SIZE + HALF + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        turn = tl.load(position + line, mask=there, other=0).to(tl.int64)[:, None] * SIZE + at[None, :]
        cos_low = tl.load(cos + turn, mask=mask, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + turn + HALF, mask=mask, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + turn, mask=mask, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + turn + HALF, mask=mask, other=0.0).to(tl.float32)
        turned_low = (a * cos_low + b * sin_low).to(q.dtype.element_ty)
        turned_high = (b * cos_high + a * sin_high).to(q.dtype.element_ty)
        if head < HEADS:
            asked = q + (line * HEADS + head)[:, None] * SIZE + at[None, :]
            tl.store(asked, turned_low, mask=mask)
            tl.store(asked + HALF, turned_high, mask=mask)
        else:
            target = keys + (line * KV_HEADS + head - HEADS)[:, None] * head_stride + place + at[None, :]
            tl.store(target, turned_low, mask=mask)
            tl.store(target + HALF, turned_high, mask=mask)


@triton.jit
def _silu_mul(
    gate_up, low, up, out, lines, stride, size, scale, RANK: tl.constexpr, COLUMNS: tl.constexpr, LINES: tl.constexpr
):
    """Some columns of some lines."""
    line = (tl.program_id(1) * LINES + tl.arange(0, LINES)).to(tl.int64)
    there = line < lines
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < size
    mask = there[:, None] & inside[None, :]
    source = gate_up + line[:, None] * stride + at[None, :]
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(source + size, mask=mask, other=0.0).to(tl.float32)
    if low is not None:
        rank = tl.arange(0, RANK)
        part = low + line[:, None] * stride + rank[None, :]
        rows = up + rank[:, None] * (2 * size) + at[None, :]
        of_gate = tl.load(part, mask=there[:, None], other=0.0)
        of_up = tl.load(part + RANK, mask=there[:, None], other=0.0)
        gate += tl.dot(of_gate, tl.load(rows, mask=inside[None, :], other=0.0)) * scale
        other += tl.dot(of_up, tl.load(rows + size, mask=inside[None, :], other=0.0)) * scale
    result = (gate * tl.sigmoid(gate) * other).to(out.dtype.element_ty)
    tl.store(out + line[:, None] * size + at[None, :], result, mask=mask)
