"""Attention of one new token a line over a cache of grouped-query heads, without a mask: a line looks at the columns from
its prompt's first on, up to the one just written, and both ends are numbers on the device. So the same launch serves every
length, and a line that has ended reads nothing.

The columns of a line and key head are split among programs, each of which keeps the largest score, the sum and the weighted
values of its share (float32); a second launch puts the shares together.

B lines, Hq and Hk heads of size Dh, G = Hq / Hk queries a group, T columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1024  # about how many share the work: some for each of a card's 50-150 multiprocessors
BLOCK = 64  # columns that a program reads at once
WARPS, STAGES = (
    4,
    3,
)  # STAGES - 1 blocks are on their way while one is worked on: 3 take 70 KB of a multiprocessor's 228
LEAST = 32  # columns of the cache for each share: fewer are not worth a program


def attend(
    q: Tensor, keys: Tensor, values: Tensor, start: Tensor, column: Tensor, alive: Tensor | None, scale: float
) -> Tensor:
    """Returns what each head reads, [B, Hq Dh], for queries [B, Hq, Dh] and a cache [B, Hk, T, Dh].

    Line i looks at columns start[i] to column[i], or the one column[0] of all lines, both in it (int64 [B], [B] or [1]);
    where `alive` [B] is False, the answer is zero.
    """
    lines, heads, size = q.shape
    kv_heads, columns = keys.shape[1:3]
    group, width = heads // kv_heads, max(16, triton.next_power_of_2(size))
    splits = _splits(lines * kv_heads, columns)
    shares = torch.empty(lines, heads, splits, size, dtype=torch.float32, device=q.device)
    tops, sums = torch.empty(2, lines, heads, splits, dtype=torch.float32, device=q.device)
    _share[(lines, kv_heads, splits)](
        q, keys, values, start, column, alive, shares, tops, sums, int(len(column) > 1), columns * size,
        scale * 1.4426950408889634,  # log2(e)
        group, size, max(16, triton.next_power_of_2(group)), width, BLOCK, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    out = torch.empty(lines, heads * size, dtype=q.dtype, device=q.device)
    _join[(lines * heads,)](shares, tops, sums, out, size, splits, width, num_warps=2)
    return out


def _splits(pairs: int, columns: int) -> int:
    """Returns among how many programs the columns of each (line, key head) are split, a power of 2."""
    wanted = min(triton.cdiv(PROGRAMS, pairs), triton.cdiv(columns, LEAST), 128)
    return triton.next_power_of_2(wanted + 1) // 2


@triton.jit
def _share(
    q, keys, values, start, column, alive, shares, tops, sums, column_stride, head_stride, scale,
    GROUP: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One share of one line and key head. A group's queries are padded to ROWS, the least a matrix product takes."""
    line = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    rows = tl.arange(0, ROWS)
    at = tl.arange(0, WIDTH)
    inside = at < SIZE
    head = (line * tl.num_programs(1) + kv_head) * GROUP + rows  # int64 [ROWS]
    query = tl.load(q + head[:, None] * SIZE + at[None, :], mask=(rows < GROUP)[:, None] & inside[None, :], other=0.0)

    first = tl.load(start + line).to(tl.int32)
    end = tl.load(column + line * column_stride).to(tl.int32) + 1
    if alive is not None:
        end = tl.where(tl.load(alive + line), end, first)
    each = tl.cdiv(end - first, splits)
    first = first + split * each
    end = tl.minimum(end, first + each)

    keys += (line * tl.num_programs(1) + kv_head) * head_stride
    values += (line * tl.num_programs(1) + kv_head) * head_stride
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    read = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in tl.range(first, end, BLOCK):
        columns = block + tl.arange(0, BLOCK)
        there = columns < end
        place = columns[:, None] * SIZE + at[None, :]
        mask = there[:, None] & inside[None, :]
        key = tl.load(keys + place, mask=mask, other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))  # finite: a block's first column is there
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        value = tl.load(values + place, mask=mask, other=0.0)
        total = total * shrink + tl.sum(weight, axis=1)
        read = read * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
        top = higher
    share = head * splits + split
    real = rows < GROUP
    tl.store(tops + share, top, mask=real)
    tl.store(sums + share, total, mask=real)
    tl.store(shares + share[:, None] * SIZE + at[None, :], read, mask=real[:, None] & inside[None, :])


@triton.jit
def _join(shares, tops, sums, out, SIZE: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """One line and head: the shares by the weight that each has under the largest score of all."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    at = tl.arange(0, WIDTH)
    inside = at < SIZE
    top = tl.load(tops + head * SPLITS + split)
    highest = tl.maximum(tl.max(top, axis=0), -1e30)  # finite even where every share is empty
    weight = tl.exp2(top - highest)
    total = tl.sum(weight * tl.load(sums + head * SPLITS + split), axis=0)
    share = tl.load(shares + (head * SPLITS + split[:, None]) * SIZE + at[None, :], mask=inside[None, :], other=0.0)
    read = tl.sum(share * weight[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + head * SIZE + at, read.to(out.dtype.element_ty), mask=inside)
