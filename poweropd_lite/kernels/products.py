"""The head, and its logits of hidden states: float32 out of any dtype on any device, a few rows at a time.

Shapes: N rows of hidden states, C of them in a chunk, D hidden size, V rows of the head.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from poweropd_lite.kernels.packed import Packed

LOGIT_ELEMENTS = 3 << 23  # 96 MiB of float32 logits a chunk: 165 rows of Qwen3's vocabulary
FUSED_ELEMENTS = 5 << 24  # with head.py's kernels, a row each for a card's processors: 512 of them
_HALF = (torch.bfloat16, torch.float16)
_FEW_ROWS, _FEW_ROWS_BLOCK = 16, 1 << 10  # on a CPU so few rows are faster in blocks of a large head's rows
_VOCAB_BLOCK = 1 << 14  # head rows that are widened to float32 at a time where the matmul can't do so itself


class Head(NamedTuple):
    """What makes logits of hidden states h: cap * tanh(scale * (h W^T + b) / cap), or scale * (h W^T + b) without a cap."""

    weight: Tensor  # W [V, D]
    bias: Tensor | None = None  # b [V]
    scale: float = 1.0
    cap: float | None = None
    packed: Packed | None = None  # W^T, beside it, for a CPU's products of few rows

    @property
    def wide(self) -> torch.dtype:
        """What its logits are: float32, or float64."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def bend(self, logits: Tensor) -> Tensor:
        """Scales and caps h W^T + b [C, V], in place."""
        if self.cap is not None:
            return logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return logits if self.scale == 1.0 else logits.mul_(self.scale)

    def slope(self, logits: Tensor, out: Tensor | None) -> Tensor | float | None:
        """Returns d(logits)/d(h W^T + b) at the logits [C, V], in `out` if there is a cap; None where it is 1."""
        if self.cap is not None:
            return torch.div(logits, self.cap, out=out).square_().neg_().add_(1.0).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale

    def learnt(self) -> "Head":
        """Returns it as a constant to the gradient where none is recorded, which a Function's forward can't tell."""
        if torch.is_grad_enabled():
            return self
        return self._replace(weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())


def product_chunks(
    hidden: Tensor, head: Head, fused: bool, beside: int = 0, learns: bool = False
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | float | None]]:
    """Yields which rows of `hidden` [N, D] a chunk is, their logits [C, V], as much room, and for what `learns` their
    Head.slope; the tensors are used again.

    For the kernels (`fused`) there is room for a gradient in the hidden states' dtype. Rows are fewer where the caller holds
    tensors as large `beside` these two.
    """
    bends = learns and head.cap is not None
    elements = FUSED_ELEMENTS if fused else 2 * LOGIT_ELEMENTS // (2 + beside + bends)
    chunks = row_chunks(hidden.shape[0], head.weight.shape[0], elements)
    out = hidden.new_empty(chunks[0].stop if chunks else 0, head.weight.shape[0], dtype=head.wide)
    room = torch.empty_like(out, dtype=hidden.dtype if fused else out.dtype)
    slopes = torch.empty_like(out) if bends else None
    for chunk in chunks:
        part = out[: chunk.stop - chunk.start]
        write_logits(hidden[chunk], head, part)
        slope = head.slope(part, None if slopes is None else slopes[: len(part)]) if learns else None
        yield chunk, part, room[: len(part)], slope


def logit_chunks(hidden: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """Yields the logits [C, V] of a few rows at a time, less each row's largest, and which rows of `hidden` [N, D] they are."""
    head = as_used(hidden, head)
    for chunk in row_chunks(hidden.shape[0], head.weight.shape[0], LOGIT_ELEMENTS):
        yield chunk, float_logits(hidden[chunk], head)


def float_logits(hidden: Tensor, head: Head) -> Tensor:
    """Returns the logits [C, V] of hidden [C, D] less each row's largest, in float32 (float64 for float64).

    Less it, for log-probs of logits near 30 round at that size, which a reward of alpha 500 shows as 1e-3 of itself.
    """
    logits = hidden.new_empty(hidden.shape[0], head.weight.shape[0], dtype=head.wide)
    write_logits(hidden, head, logits)
    return logits.sub_(logits.amax(-1, keepdim=True))


def write_logits(hidden: Tensor, head: Head, out: Tensor) -> None:
    """Writes the logits of hidden [C, D] to `out` [C, V], float32 or float64."""
    if head.packed is not None:
        head.bend(out.copy_(head.packed.product(hidden.to(out.dtype), head.bias)))
        return
    _products(hidden, head.weight, out)
    head.bend(out if head.bias is None else out.add_(head.bias))


def _products(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """Writes hidden [C, D] @ weight [V, D]^T to `out` [C, V]."""
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
    """Adds dlogits [C, V]^T @ hidden [C, D] to dweight [V, D].

    `hidden` is multiplied by rewards, which the loss scale comes after: in float16, whose least number is 6e-8, small ones
    would be 0, so there the product is of float32.
    """
    if dlogits.dtype != torch.bfloat16:
        dweight.addmm_(dlogits.T.to(dweight.dtype), hidden.to(dweight.dtype))
    else:
        torch.addmm(dweight, dlogits.T, hidden.to(dlogits.dtype), out_dtype=dweight.dtype, out=dweight)


def as_used(hidden: Tensor, head: Head) -> Head:
    """Returns the head as the matmuls take it: once a call, not once a chunk, in the hidden states' half precision."""
    half = head.weight.is_cuda and hidden.dtype in _HALF
    return head._replace(weight=head.weight.to(hidden.dtype)) if half else head


def row_chunks(count: int, vocabulary: int, elements: int) -> list[slice]:
    """Returns the rows of each chunk, for `count` rows and at most so many `elements` of logits a chunk."""
    rows = max(1, elements // vocabulary)
    rows -= rows % 128 if rows >= 256 else 0  # whole tiles of a card's matmul
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
