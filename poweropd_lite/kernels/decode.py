"""What stands between the matrix products of one decoded token, each as one launch: reads once, float32 inside, rounds once.

B lines, D hidden size, Hq and Hk heads of size Dh, T columns of the cache. Rows may be parts of wider ones: a matrix's row
stride is read from it, its columns must be side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_rms(x: Tensor, update: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the residual stream x + update [B, D], in its own dtype, and its RMS norm times `weight`, in `dtype`.

    Without an update the stream is `x` itself.
    """
    lines, size = x.shape
    total = x if update is None else torch.empty_like(x)
    normed = torch.empty(lines, size, dtype=dtype, device=x.device)
    stride = 0 if update is None else update.stride(0)
    block = triton.next_power_of_2(size)
    _add_rms[(lines,)](x, update, weight, total, normed, stride, size, eps, block, num_warps=4 if block <= 4096 else 8)
    return total, normed


def rotate_and_store(
    qkv: Tensor, norm: Tensor | None, eps: float, turn: tuple[Tensor, Tensor], position: Tensor, column: Tensor,
    keys: Tensor, values: Tensor,
) -> Tensor:  # fmt: skip
    """Norms and rotates the queries and keys of one token a line; returns the queries [B, Hq, Dh].

    `qkv` [B, (Hq + 2 Hk) Dh] and the heads' norm weights [Hq + Hk, Dh], if there are any; `turn` is cos and sin [P, Dh],
    sin with rotate_half's sign in it; `position` [B]. Keys and values are written at `column` ([B], or [1] for all
    lines) of the cache [B, Hk, T, Dh].
    """
    lines, kv_heads, columns, size = keys.shape
    heads = qkv.shape[1] // size - 2 * kv_heads
    q = torch.empty(lines, heads, size, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store[(lines, heads + 2 * kv_heads)](
        qkv, norm, *turn, position, column, q, keys, values, int(len(column) > 1), qkv.stride(0), columns * size,
        eps, heads, kv_heads, size, triton.next_power_of_2(size // 2), num_warps=1,
    )  # fmt: skip
    return q


def silu_mul(gate_up: Tensor) -> Tensor:
    """Returns silu(gate) * up [B, M], for both side by side [B, 2 M]."""
    lines, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(lines, size, dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(size))
    _silu_mul[(lines, triton.cdiv(size, block))](gate_up, out, gate_up.stride(0), size, block, num_warps=4)
    return out


@triton.jit
def _add_rms(x, update, weight, total, normed, update_stride, size, eps, BLOCK: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + line * size + at, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        value += tl.load(update + line * update_stride + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + line * size + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    value *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + line * size + at, value.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_store(
    qkv, norm, cos, sin, position, column, q, keys, values, column_stride, qkv_stride, head_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one line; its halves are turned into each other."""
    HALF: tl.constexpr = SIZE // 2
    line = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    low = tl.arange(0, BLOCK)
    inside = low < HALF
    high = low + HALF
    source = qkv + line * qkv_stride + head * SIZE
    a = tl.load(source + low, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + high, mask=inside, other=0.0).to(tl.float32)
    place = tl.load(column + line * column_stride).to(tl.int64) * SIZE
    if head >= HEADS + KV_HEADS:
        written = values + (line * KV_HEADS + head - HEADS - KV_HEADS) * head_stride + place
        tl.store(written + low, a.to(values.dtype.element_ty), mask=inside)
        tl.store(written + high, b.to(values.dtype.element_ty), mask=inside)
    else:
        if norm is not None:
            scale = tl.rsqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / SIZE + eps)
            a *= scale * tl.load(norm + head * SIZE + low, mask=inside, other=0.0).to(tl.float32)
            b *= scale * tl.load(norm + head * SIZE + high, mask=inside, other=0.0).to(tl.float32)
        turn = tl.load(position + line).to(tl.int64) * SIZE
        cos_low = tl.load(cos + turn + low, mask=inside, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + turn + high, mask=inside, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + turn + low, mask=inside, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + turn + high, mask=inside, other=0.0).to(tl.float32)
        turned_low = (a * cos_low + b * sin_low).to(q.dtype.element_ty)
        turned_high = (b * cos_high + a * sin_high).to(q.dtype.element_ty)
        if head < HEADS:
            asked = q + (line * HEADS + head) * SIZE
            tl.store(asked + low, turned_low, mask=inside)
            tl.store(asked + high, turned_high, mask=inside)
        else:
            target = keys + (line * KV_HEADS + head - HEADS) * head_stride + place
            tl.store(target + low, turned_low, mask=inside)
            tl.store(target + high, turned_high, mask=inside)


@triton.jit
def _silu_mul(gate_up, out, stride, size, BLOCK: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up + line * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + line * stride + size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + line * size + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
