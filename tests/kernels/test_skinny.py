"""The product of a few rows with a matrix, against float64."""

import interpreter  # noqa: F401  # mends what Triton runs the kernels with here
import pytest
import torch

from poweropd_lite.kernels import skinny
from poweropd_lite.kernels.decode import Product, add_rms


@pytest.mark.parametrize("lines, size, split, shares", [(3, 256, False, 1), (17, 336, True, 2), (2, 512, True, 4)])
def test_products(lines, size, split, shares):
    """80 rows in tiles of 32; 336 columns are not whole blocks of 128."""
    torch.manual_seed(size)
    x, weight = torch.randn(lines, size).bfloat16(), torch.randn(80, size).bfloat16()
    got, wanted = skinny.product(x, weight, split), x.double() @ weight.double().T
    if shares == 1:
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=2**-8)
    else:
        assert got.shape == (shares, lines, 80) and got.dtype == torch.float32
        torch.testing.assert_close(got.double().sum(0), wanted, atol=1e-4, rtol=1e-5)


def test_shares_are_added_up_by_the_norm():
    """64 numbers a line and 16 of an adapter, in two shares: as in one."""
    torch.manual_seed(0)
    x, whole, shares = torch.randn(3, 64), torch.randn(3, 80), torch.randn(2, 3, 80)
    shares[1] = whole - shares[0]
    up, weight = torch.randn(16, 64), torch.rand(64)
    one = add_rms(x, Product(whole[:, :64], whole[:, 64:], up, 2.0), weight, 1e-6, torch.float32)
    two = add_rms(x, Product(shares[..., :64], shares[..., 64:], up, 2.0), weight, 1e-6, torch.float32)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
