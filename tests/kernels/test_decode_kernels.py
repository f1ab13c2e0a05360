"""The elementwise kernels of a decoded token against plain torch in float64."""

import interpreter  # noqa: F401  # mends what Triton runs the kernels with here
import pytest
import torch
import torch.nn.functional as F

from poweropd_lite.kernels.decode import add_rms, rotate_and_store, silu_mul


def close(got, wanted, dtype):
    assert got.dtype == dtype
    tight = dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, atol=1e-6 if tight else 1e-3, rtol=2e-6 if tight else 2**-8)


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize("stream, dtype", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])  # fmt: skip
def test_add_and_norm(size, stream, dtype):
    """The update is the left part of wider rows, as a product with an adapter leaves it."""
    torch.manual_seed(size)
    x, wide, weight = torch.randn(3, size).to(stream), torch.randn(3, size + 16).to(dtype), torch.rand(size) + 0.5
    total, normed = add_rms(x, wide[:, :size], weight, 1e-6, dtype)
    added = (x.double() + wide[:, :size].double()).to(stream)
    assert torch.equal(total, added)
    close(normed, rms(added.double(), weight.double(), 1e-6), dtype)
    total, normed = add_rms(x, None, weight, 1e-6, dtype)
    assert total is x
    close(normed, rms(x.double(), weight.double(), 1e-6), dtype)


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_and_store(size, normed, dtype):
    """Two lines, three query heads on one key head; the cache's other columns stay."""
    torch.manual_seed(size)
    qkv = torch.randn(2, 5 * size + 16).to(dtype)[:, : 5 * size]
    norm = (torch.rand(4, size) + 0.5).to(dtype) if normed else None
    angles = torch.rand(20, size // 2) * 6
    cos = torch.cat([angles.cos()] * 2, -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    position, column = torch.tensor([3, 11]), torch.tensor([6])
    keys, values = torch.full((2, 2, 1, 9, size), 7.0).to(dtype)
    q = rotate_and_store(qkv, norm, 1e-6, (cos, sin), position, column, keys, values)
    heads = qkv.double().view(2, 5, size)
    qk = heads[:, :4] if norm is None else rms(heads[:, :4], norm.double(), 1e-6)
    first, second = qk.chunk(2, -1)
    plain_sin = angles.sin().to(dtype).double()[position][:, None]
    c = cos.double()[position][:, None].chunk(2, -1)[0]
    turned = torch.cat([first * c - second * plain_sin, second * c + first * plain_sin], -1)
    close(q, turned[:, :3], dtype)
    close(keys[:, :, 6], turned[:, 3:], dtype)
    others = torch.full_like(keys, 7.0), torch.full_like(values, 7.0)  # each line at a column of its own
    rotate_and_store(qkv, norm, 1e-6, (cos, sin), position, torch.tensor([6, 2]), *others)
    for found, whole in zip(others, (keys, values), strict=True):
        assert torch.equal(found[0], whole[0]) and torch.equal(found[1, :, 2], whole[1, :, 6])
    assert torch.equal(values[:, 0, 6], qkv.view(2, 5, size)[:, 4])
    rest = [i for i in range(9) if i != 6]
    assert (keys[:, :, rest] == 7).all() and (values[:, :, rest] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_times_up(dtype):
    torch.manual_seed(0)
    both = (torch.randn(3, 2 * 1040 + 16) * 4).to(dtype)[:, : 2 * 1040]  # two programs a line, the second of 16 numbers
    gate, up = both.double().chunk(2, -1)
    close(silu_mul(both), F.silu(gate) * up, dtype)
