"""What a head's logits say of each row, in one pass over them, and the gradient, in another: Triton, on a card.

The plain code, and the reference, is method/logprobs.py. There a pass each goes for the largest, the exps, their sum and their
product with the logits; here a row is read once, each lane keeping its own largest, sum and product, brought together last.
"""

import os
from functools import cache

import torch
from torch import Tensor

from poweropd_lite.kernels.card import unfit
from poweropd_lite.kernels.products import Head, as_used, product_chunks

try:
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError  # it would be memory for nothing
    import triton
    import triton.language as tl
except ImportError:  # no card, or another kind of card
    triton = None

BLOCK = 4096
switched_off = False  # by `switch`


def switch(kernels: str) -> None:
    """Sets for this process whether they are used: "auto", where they run, or "off"."""
    global switched_off
    switched_off = kernels == "off"


def usable(tensor: Tensor) -> bool:
    """Whether the kernels take over for a tensor: on a card where `fault` finds nothing wrong with them."""
    return tensor.is_cuda and not switched_off and tensor.dtype != torch.float64 and fault(tensor.get_device()) is None


@cache
def fault(card: int) -> str | None:
    """Returns why the kernels can't be used on a card, having held them to the plain code on a few rows there, or None."""
    device = torch.device("cuda", card)
    if why := unfit(device):
        return why
    logits = 4 * torch.randn(8, 3 * BLOCK + 5, generator=torch.Generator().manual_seed(0)).to(device)
    target, room = torch.zeros(8, 1, dtype=torch.long, device=device), torch.empty_like(logits)
    try:
        top, total, dot = facts(logits)
        gradient(logits, top, total, target, room)
    except Exception as error:  # whatever a compiler says
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"Triton fails there ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    shifted, mass = logits.clone(), torch.empty_like(logits)
    wanted = plain_facts(shifted, mass)
    q = mass * (-wanted[1]).exp()
    pairs = (
        (top, wanted[0]),
        (total, wanted[1]),
        (dot, (mass * shifted).sum(-1, keepdim=True)),
        (room[:, 1:], -q[:, 1:]),
    )
    worst = max(((ours - plain).norm() / plain.norm()).item() for ours, plain in pairs)
    return None if worst < 1e-5 else f"they are {worst:.2g} off there"


def target_logprobs(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    """Returns log q of `ids` [N], float32 (float64) and at most 0, given the hidden states [N, D] that predict them; there is no
    gradient.
    """
    one_pass = usable(hidden)
    out = torch.empty(len(ids), 1, dtype=head.wide, device=hidden.device)
    for chunk, logits, room, _ in product_chunks(hidden, as_used(hidden, head), one_pass):
        top, total, *_ = facts(logits) if one_pass else plain_facts(logits, room)
        chosen = logits.gather(-1, ids[chunk, None])
        out[chunk] = (chosen - top if one_pass else chosen) - total
    return out[:, 0].clamp_max_(0.0)


def plain_facts(logits: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Takes each row's largest from its logits [C, V]; their exp is then in `room`. Returns it and the log of the exps' sum,
    both [C, 1]. The largest, whose exp is 1, is added last, to leave the sum of the rest its digits.
    """
    place = _largest(logits)
    top = logits.gather(-1, place)
    torch.exp(logits.sub_(top), out=room).scatter_(-1, place, 0.0)
    total = room.sum(-1, keepdim=True).log1p_()
    room.scatter_(-1, place, 1.0)
    return top, total


def _largest(logits: Tensor) -> Tensor:
    """Returns argmax [C, 1] of logits [C, V]: of 128 at a time first, as a CPU is five times slower at an argmax than at a maximum."""
    whole = logits.shape[-1] // 128 * 128
    blocks = logits[:, :whole].unflatten(-1, (-1, 128))
    first = torch.cat([blocks.amax(-1), logits[:, whole:]], -1).argmax(-1, keepdim=True)
    block = first.clamp_max(max(0, blocks.shape[1] - 1))
    inside = blocks.gather(1, block[..., None].expand(-1, -1, 128)).argmax(-1) if whole else first
    return torch.where(first < blocks.shape[1], block * 128 + inside, whole + first - blocks.shape[1])


def facts(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, all [C, 1], of each row of logits z [C, V] float32: its largest; the log of the sum of e = exp(z - largest); the sum
    of e (z - largest). The largest's own e, which is 1, is added last, as in logprobs.
    """
    rows, columns = logits.shape
    out = torch.empty(3, rows, dtype=torch.float32, device=logits.device)
    _facts[(rows,)](logits, out, rows, logits.stride(0), columns=columns, BLOCK=BLOCK, num_warps=8)
    top, rest, dot = out[:, :, None].unbind(0)
    return top, rest.log1p(), dot


def gradient(logits: Tensor, top: Tensor, norm: Tensor, target: Tensor, out: Tensor) -> None:
    """Writes onehot(target) - exp(logits - top - norm), [C, V], to `out`, of any floating dtype; the others are [C, 1]."""
    rows, columns = logits.shape
    grid = rows, triton.cdiv(columns, BLOCK)
    _gradient[grid](
        logits, top, norm, target.contiguous(), out, columns, logits.stride(0), out.stride(0), BLOCK=BLOCK, num_warps=8
    )


def block_sums(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the largest of each block of `size` (a power of 2) logits [C, V] float32, and the sum of exp(logits - it): [C, N]."""
    rows, columns = logits.shape
    blocks = triton.cdiv(columns, size)
    tops, sums = torch.empty(2, rows, blocks, dtype=torch.float32, device=logits.device)
    _block_sums[(rows, blocks)](logits, tops, sums, columns, logits.stride(0), BLOCK=size, num_warps=4)
    return tops, sums


if triton is not None:

    @triton.jit
    def _block_sums(logits, tops, sums, columns, stride, BLOCK: tl.constexpr):
        row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        lane = block * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + lane, mask=lane < columns, other=-1e30)
        top = tl.max(z, 0)
        place = row * tl.num_programs(1) + block
        tl.store(tops + place, top)
        tl.store(sums + place, tl.sum(tl.where(lane < columns, tl.exp(z - top), 0.0), 0))

    @triton.jit
    def _facts(logits, out, rows, stride, columns: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        here = logits + row.to(tl.int64) * stride
        lane = tl.arange(0, BLOCK)
        top = tl.load(here + lane, mask=lane < columns, other=-1e30)
        rest = tl.zeros([BLOCK], dtype=tl.float32)  # the sum of exp(z - top) but for top's own
        dot = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(BLOCK, columns, BLOCK):
            z = tl.load(here + start + lane, mask=start + lane < columns, other=-1e30)
            gap = z - top
            shrink = tl.exp(-tl.abs(gap))
            larger = gap > 0
            dot = tl.where(larger, shrink * (dot - (rest + 1) * gap), dot + shrink * gap)
            rest = tl.where(larger, (rest + 1) * shrink, rest + shrink)
            top = tl.maximum(top, z)
        best = tl.max(top, 0)
        place = tl.argmax(top, 0)
        weight = tl.exp(top - best)
        total = tl.sum(weight * rest + tl.where(lane == place, 0.0, weight), 0)
        product = tl.sum(weight * (dot + (rest + 1) * (top - best)), 0)
        tl.store(out + row, best)
        tl.store(out + rows + row, total)
        tl.store(out + 2 * rows + row, product)

    @triton.jit
    def _gradient(logits, top, norm, target, out, columns, stride, out_stride, BLOCK: tl.constexpr):
        row, block = tl.program_id(0), tl.program_id(1)
        lane = block * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(logits + row.to(tl.int64) * stride + lane, mask=lane < columns, other=-1e30)
        q = tl.exp(z - tl.load(top + row) - tl.load(norm + row))
        value = tl.where(lane == tl.load(target + row), 1.0, 0.0) - q
        tl.store(out + row.to(tl.int64) * out_stride + lane, value.to(out.dtype.element_ty), mask=lane < columns)
