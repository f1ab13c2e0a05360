"""The head's matrix products: float32 out of any dtype on any device, a few rows at a time.

Shapes: N rows of hidden states, C of them in a chunk, D hidden size, V rows of the head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

LOGIT_ELEMENTS = 3 << 23  # 96 MiB of float32 logits a chunk: 165 rows of Qwen3's vocabulary
FUSED_ELEMENTS = 5 << 24  # with head.py's kernels, a row each for a card's processors: 512 of them
_HALF = (torch.bfloat16, torch.float16)
_FEW_ROWS, _FEW_ROWS_BLOCK = 16, 1 << 10  # on a CPU so few rows are faster in blocks of a large head's rows
_VOCAB_BLOCK = 1 << 14  # head rows that are widened to float32 at a time where the matmul can't do so itself


def product_chunks(
    hidden: Tensor, weight: Tensor, fused: bool, beside: int = 0
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields which rows of `hidden` [N, D] a chunk is, their products with `weight` [V, D], and as much room; both are used again.

    For the kernels (`fused`) there is room for a gradient in the hidden states' dtype. Rows are fewer where the caller holds
    tensors as large `beside` these two.
    """
    elements = FUSED_ELEMENTS if fused else 2 * LOGIT_ELEMENTS // (2 + beside)
    chunks = row_chunks(hidden.shape[0], weight.shape[0], elements)
    out = hidden.new_empty(chunks[0].stop if chunks else 0, weight.shape[0], dtype=wide_dtype(weight))
    room = torch.empty_like(out, dtype=hidden.dtype if fused else out.dtype)
    for chunk in chunks:
        part = out[: chunk.stop - chunk.start]
        products(hidden[chunk], weight, part)
        yield chunk, part, room[: len(part)]


def logit_chunks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields the logits [C, V] of a few rows at a time, less each row's largest, and which rows of `hidden` [N, D] they are."""
    matrix = matrix_of(hidden, weight)
    for chunk in row_chunks(hidden.shape[0], weight.shape[0], LOGIT_ELEMENTS):
        yield chunk, float_logits(hidden[chunk], matrix)


def float_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns logits [C, V], hidden [C, D] @ weight [V, D]^T less each row's largest, in float32 (float64 for float64).

    Less it, for log-probs of logits near 30 round at that size, which a reward of alpha 500 shows as 1e-3 of itself.
    """
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=wide_dtype(weight))
    products(hidden, weight, logits)
    return logits.sub_(logits.amax(-1, keepdim=True))


def products(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """Writes hidden [C, D] @ weight [V, D]^T to `out` [C, V], float32 or float64."""
    half, few = weight.dtype in _HALF, not weight.is_cuda and hidden.shape[0] < _FEW_ROWS
    with torch.autocast(hidden.device.type, enabled=False):  # which would round them to half precision
        if weight.is_cuda and hidden.dtype in _HALF:
            torch.mm(hidden, weight.to(hidden.dtype).T, out_dtype=torch.float32, out=out)
            return
        x = hidden.to(out.dtype)
        size = _FEW_ROWS_BLOCK if few and not half else _VOCAB_BLOCK if half else weight.shape[0]
        for start in range(0, weight.shape[0], size):
            block = slice(start, start + size)
            torch.mm(x, weight[block].to(out.dtype).T, out=out[:, block])


def pull_back(dlogits: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns dlogits [C, V] @ weight [V, D] in float32 (float64): the gradient of the hidden states."""
    if weight.is_cuda and dtype in _HALF:
        return torch.mm(dlogits.to(dtype), weight.to(dtype), out_dtype=torch.float32)
    if weight.dtype not in _HALF:
        return dlogits @ weight
    out = dlogits.new_zeros(dlogits.shape[0], weight.shape[1], dtype=torch.float32)
    for start in range(0, weight.shape[0], _VOCAB_BLOCK):
        block = slice(start, start + _VOCAB_BLOCK)
        out.addmm_(dlogits[:, block].float(), weight[block].float())
    return out


def add_outer(dweight: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
    """Adds dlogits [C, V]^T @ hidden [C, D] to dweight [V, D]."""
    if dlogits.dtype == dweight.dtype:
        dweight.addmm_(dlogits.T, hidden.to(dweight.dtype))
    else:
        torch.addmm(dweight, dlogits.T, hidden.to(dlogits.dtype), out_dtype=dweight.dtype, out=dweight)


def wide_dtype(weight: Tensor) -> torch.dtype:
    """Returns what logits of such a head are: float32, or float64."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def matrix_of(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns the head as the matmuls take it: once a call, not once a chunk, in the hidden states' half precision."""
    return weight.to(hidden.dtype) if weight.is_cuda and hidden.dtype in _HALF else weight


def row_chunks(count: int, vocabulary: int, elements: int) -> list[slice]:
    """Returns the rows of each chunk, for `count` rows and at most so many `elements` of logits a chunk."""
    rows = max(1, elements // vocabulary)
    rows -= rows % 128 if rows >= 256 else 0  # whole tiles of a card's matmul
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
