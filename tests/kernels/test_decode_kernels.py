"""The elementwise kernels of a decoded token against plain torch in float64."""

import interpreter  # noqa: F401  # mends what Triton runs the kernels with here
import pytest
import torch
import torch.nn.functional as F

from poweropd_lite.kernels import decode
from poweropd_lite.kernels.decode import Product, add_rms, rotate_and_store, silu_mul


def close(got, wanted, dtype):
    assert got.dtype == dtype
    tight = dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, atol=1e-6 if tight else 1e-3, rtol=2e-6 if tight else 2**-8)


def product(lines, outs, rank, dtype):
    """A random Product of layers with these outs, and the same in float64, layer by layer; the wide rows end in NaN."""
    width = sum(outs)
    wide = torch.randn(lines, width + rank * len(outs) + 16).to(dtype)
    wide[:, -16:] = float("nan")
    out, low = wide[:, :width], wide[:, width:-16]
    if not rank:
        return Product(out), out.double()
    up = torch.randn(rank, width).to(dtype)
    parts = zip(low.double().split(rank, 1), up.double().split(outs, 1), strict=True)
    return Product(out, low, up, 0.3), out.double() + 0.3 * torch.cat([a @ b for a, b in parts], 1)


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("size, rank", [(64, 0), (64, 16), (100, 32)])
@pytest.mark.parametrize("stream, dtype", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])  # fmt: skip
def test_add_and_norm(size, rank, stream, dtype, monkeypatch):
    """With B of 32 ranks in two chunks."""
    monkeypatch.setattr(decode, "TILE", 16 * 128)
    torch.manual_seed(size)
    x, weight = torch.randn(3, size).to(stream), torch.rand(size) + 0.5
    update, wanted = product(3, [size], rank, dtype)
    total, normed = add_rms(x, update, weight, 1e-6, dtype)
    close(total, x.double() + wanted, stream)
    close(normed, rms(total.double(), weight.double(), 1e-6), dtype)
    total, normed = add_rms(x, None, weight, 1e-6, dtype)
    assert total is x
    close(normed, rms(x.double(), weight.double(), 1e-6), dtype)


@pytest.mark.parametrize("size, normed, rank, lines", [(16, True, 16, 17), (24, False, 32, 2), (24, True, 0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_and_store(size, normed, rank, lines, dtype):
    """One to two blocks of lines, three query heads on one key head; the cache's other columns stay."""
    torch.manual_seed(size)
    qkv, wanted = product(lines, [3 * size, size, size], rank, dtype)
    norm = (torch.rand(4, size) + 0.5).to(dtype) if normed else None
    angles = torch.rand(20, size // 2) * 6
    cos = torch.cat([angles.cos()] * 2, -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    position, column = torch.arange(lines) * 8 % 19 + 1, torch.tensor([6])
    keys, values = torch.full((2, lines, 1, 9, size), 7.0).to(dtype)
    q = rotate_and_store(qkv, norm, 1e-6, (cos, sin), position, column, keys, values)
    heads = wanted.view(lines, 5, size)
    qk = heads[:, :4] if norm is None else rms(heads[:, :4], norm.double(), 1e-6)
    first, second = qk.chunk(2, -1)
    plain_sin = angles.sin().to(dtype).double()[position][:, None]
    c = cos.double()[position][:, None].chunk(2, -1)[0]
    turned = torch.cat([first * c - second * plain_sin, second * c + first * plain_sin], -1)
    close(q, turned[:, :3], dtype)
    close(keys[:, :, 6], turned[:, 3:], dtype)
    close(values[:, 0, 6], heads[:, 4], dtype)
    rest = [i for i in range(9) if i != 6]
    assert (keys[:, :, rest] == 7).all() and (values[:, :, rest] == 7).all()


@pytest.mark.parametrize("lines, rank", [(3, 0), (17, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_times_up(lines, rank, dtype):
    """Two programs a block of lines, the second of 16 columns."""
    torch.manual_seed(0)
    both, wanted = product(lines, [80, 80], rank, dtype)
    gate, up = wanted.chunk(2, -1)
    close(silu_mul(both), F.silu(gate) * up, dtype)
