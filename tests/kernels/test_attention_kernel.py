"""The decode-attention kernel against softmax written out in float64."""

import interpreter  # noqa: F401  # mends what Triton runs the kernels with here
import pytest
import torch

from poweropd_lite.kernels import attention
from poweropd_lite.kernels.attention import attend


def by_hand(q, keys, values, start, column, scale):
    """Each head alone, float64."""
    lines, heads, size = q.shape
    group = heads // keys.shape[1]
    out = torch.zeros(lines, heads, size, dtype=torch.float64)
    for i in range(lines):
        for h in range(heads):
            seen = slice(int(start[i]), int(column) + 1)
            k, v = (t[i, h // group, seen].double() for t in (keys, values))
            out[i, h] = (k @ q[i, h].double() * scale).softmax(0) @ v
    return out.flatten(1)


@pytest.mark.parametrize("group, size", [(1, 64), (2, 128), (7, 24)])
@pytest.mark.parametrize("column", [8, 149])
def test_every_line_reads_from_its_first_column_to_the_last_written(group, size, column, monkeypatch):
    """150 columns in 4 shares, of 1 to 38 columns: one block or less; what is past the column is NaN, and not read."""
    torch.manual_seed(column)
    q = torch.randn(2, 2 * group, size)
    keys, values = torch.randn(2, 2, 2, 150, size)
    keys[:, :, column + 1 :] = values[:, :, column + 1 :] = float("nan")
    start, at = torch.tensor([0, 7]), torch.tensor([column])
    got = attend(q, keys, values, start, at, None, 0.3)
    torch.testing.assert_close(got.double(), by_hand(q, keys, values, start, column, 0.3), atol=2e-6, rtol=1e-5)
    # One share of several blocks says the same, to the last bits of float32.
    monkeypatch.setattr(attention, "PROGRAMS", 1)
    torch.testing.assert_close(attend(q, keys, values, start, at, None, 0.3), got, atol=2e-6, rtol=1e-5)


def test_bfloat16_rounds_once_and_a_line_that_has_ended_is_zero():
    torch.manual_seed(0)
    q = torch.randn(3, 4, 32).bfloat16()
    keys, values = torch.randn(2, 3, 2, 90, 32).bfloat16()
    start, alive = torch.tensor([0, 30, 5]), torch.tensor([True, False, True])
    got = attend(q, keys, values, start, torch.tensor([80]), alive, 0.2)
    wanted = by_hand(q, keys, values, start, 80, 0.2)
    assert got.dtype == torch.bfloat16 and got[1].abs().max() == 0
    torch.testing.assert_close(
        got[alive].double(), wanted[alive], atol=4e-3, rtol=8e-3
    )  # 2^-8, of weights and of the sum


def test_each_line_may_have_a_last_column_of_its_own():
    torch.manual_seed(0)
    q, (keys, values) = torch.randn(2, 4, 32), torch.randn(2, 2, 2, 40, 32)
    start, ends = torch.tensor([0, 3]), torch.tensor([35, 7])
    got = attend(q, keys, values, start, ends, None, 0.2)
    for line, end in enumerate(ends.tolist()):
        wanted = by_hand(q, keys, values, start, end, 0.2)[line]
        torch.testing.assert_close(got[line].double(), wanted, atol=2e-6, rtol=1e-5)


def test_how_many_shares():
    """The paper's batch: 32 lines of 8 key heads, 1,152 columns: 4 x 256 programs. A chat's one line: 32 x 8."""
    assert attention._splits(32 * 8, 1152) == 4
    assert attention._splits(8, 1152) == 32
    assert attention._splits(8, 40) == 2 and attention._splits(8, 16) == 1 and attention._splits(4096, 1152) == 1
