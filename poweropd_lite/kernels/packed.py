"""A CPU's products of a few rows with one large matrix, over and over: laid out for oneDNN once, not anew at every product.

Decoding multiplies as many rows as there are lines, so what a product costs is reading its matrix. A plain matmul copies the
matrix into another order first, which takes as long again.
"""

import platform
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1 << 18  # elements: a smaller matrix stays in a core's cache, where its copy costs little
FEWEST = 4  # rows: fewer take longer than these


class Packed(NamedTuple):
    """A matrix [in, out] in oneDNN's own order."""

    matrix: Tensor

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns x @ matrix + bias, [N, out] float32, for x [N, in]; sums are rounded otherwise than a plain matmul's."""
        missing = max(0, FEWEST - len(x))
        rows = F.pad(x, (0, 0, 0, missing)) if missing else x
        return torch.ops.mkldnn._linear_pointwise(rows, self.matrix, bias, "none", [], "")[: len(x)]


def packs(elements: int) -> bool:
    """Whether a float32 matrix of so many elements is faster packed on this machine's CPU."""
    here = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return elements >= LEAST and here and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # which torch's compiler uses


def pack(matrix: Tensor) -> Packed | None:
    """Returns a matrix [in, out] of a CPU packed, a copy; None for one that is no faster so, and one that is only planned."""
    plain = type(matrix) is Tensor and matrix.device.type == "cpu" and matrix.dtype == torch.float32
    return Packed(torch.ops.mkldnn._reorder_linear_weight(matrix.T)) if plain and packs(matrix.numel()) else None
