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


def pack(matrix: Tensor) -> Packed | None:
    """Returns a float32 matrix [in, out] packed, a copy; None for a small one, and where it is no faster or can't be."""
    plain = (
        type(matrix) is Tensor and matrix.device.type == "cpu"
    )  # no tensor without numbers, of a student that is planned
    if not plain or matrix.dtype != torch.float32 or matrix.numel() < LEAST:
        return None
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # which is torch's own compiler's
        return None
    return Packed(torch.ops.mkldnn._reorder_linear_weight(matrix.T))
