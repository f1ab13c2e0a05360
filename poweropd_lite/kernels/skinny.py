"""The product of a few rows with a weight matrix, which takes as long as the matrix takes to be read: each number of it once,
by as many programs as a card has multiprocessors, with several blocks on their way while one is worked on.

Off unless switched on: it is torch's F.linear otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ON = False
ALL = True  # if not, the products alone whose shares the caller adds up
MOST = 64  # rows of x
ROWS, COLUMNS = 32, 128  # of the matrix, that a program reads at once
WARPS, STAGES = 4, 6  # 5 blocks of 8 KB, and as much of x, are on their way
PROGRAMS = 132  # about how many share a matrix, where the caller can add up what they made


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, split: bool) -> bool:
    """Whether `product` takes these: x [B, K] and a weight [N, K]."""
    whole = weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0
    return ON and (ALL or split) and bias is None and whole and x.shape[0] <= MOST and x.dtype == weight.dtype


def product(x: Tensor, weight: Tensor, split: bool) -> Tensor:
    """Returns x [B, K] times weight [N, K] transposed, [B, N]; with `split`, if that is faster, the shares of a sum [S, B, N] in float32."""
    lines, size = x.shape
    outs = weight.shape[0]
    tiles = triton.cdiv(outs, ROWS)
    wanted = min(PROGRAMS // tiles, triton.cdiv(size, COLUMNS), 8) if split else 1
    splits = triton.next_power_of_2(wanted + 1) // 2 if wanted > 1 else 1
    shape, dtype = ((lines, outs), x.dtype) if splits == 1 else ((splits, lines, outs), torch.float32)
    out = torch.empty(shape, dtype=dtype, device=x.device)
    each = triton.cdiv(triton.cdiv(size, splits), COLUMNS) * COLUMNS
    _product[(tiles, splits)](
        x, weight, out, lines, outs, x.stride(0), size, each, each * splits == size,
        ROWS, COLUMNS, max(16, triton.next_power_of_2(lines)), num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


@triton.jit
def _product(
    x, weight, out, lines, outs, stride, SIZE: tl.constexpr, EACH: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Some rows of the matrix, EACH of their columns: the matrix's rows are the product's, as there are many of them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    line = tl.arange(0, LINES)
    rows = (row < outs)[:, None]
    there = (line < lines)[None, :]
    at = split * EACH + tl.arange(0, COLUMNS)
    weights = weight + row.to(tl.int64)[:, None] * SIZE + at[None, :]
    numbers = x + line[None, :] * stride + at[:, None]
    total = tl.zeros([ROWS, LINES], tl.float32)
    for first in tl.range(0, EACH, COLUMNS):
        if EVEN:
            a = tl.load(weights + first, mask=rows, other=0.0)
            b = tl.load(numbers + first, mask=there, other=0.0)
        else:
            inside = at + first < SIZE
            a = tl.load(weights + first, mask=rows & inside[None, :], other=0.0)
            b = tl.load(numbers + first, mask=there & inside[:, None], other=0.0)
        total = tl.dot(a, b, total)
    place = out + (split * lines + line).to(tl.int64)[:, None] * outs + row[None, :]
    tl.store(place, tl.trans(total).to(out.dtype.element_ty), mask=(line < lines)[:, None] & (row < outs)[None, :])
