"""Triton's interpreter (3.6), mended by importing this where it is not what a card does: numbers are rounded to bfloat16, not
cut off; products of bfloat16 are of the numbers, not of their bits; and with numpy 2.4 and later a loop may end at a number
that was loaded.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert, _patch, _dot = (
    interpreter._convert_float, interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot,
)  # fmt: skip


def _rounded(data, source, target, mode):
    if (source, target) == (tl.float32, tl.bfloat16):
        return torch.tensor(data).float().bfloat16().view(torch.int16).numpy().view(np.uint16)
    if (source, target) == (tl.bfloat16, tl.float32):  # as it is, and a hundred times faster
        return (data.astype(np.uint32) << 16).view(np.float32)
    return _convert(data, source, target, mode)


def _indexed(tensor, scope):
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _product(self, a, b, *rest):
    wide = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, *wide, *rest)


interpreter._convert_float, interpreter._patch_lang_tensor = _rounded, _indexed
interpreter.InterpreterBuilder.create_dot = _product
