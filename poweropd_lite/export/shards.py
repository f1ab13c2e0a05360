"""Safetensors read and written a few rows at a time, so that a model is never in memory whole.

The format is a JSON header behind its length in eight bytes, then the tensors' bytes in the header's order.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json
from poweropd_lite.models.whole import own_name

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ROWS = 1 << 22  # elements that are read, merged and written at a time
_CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    key: str  # its name there
    shape: tuple[int, ...]
    dtype: str  # torch's name for it; empty if it is no float


class Checkpoint:
    """The safetensors of a model (none for None), by what a language model itself calls them, in the order of their files."""

    def __init__(self, model: str | None) -> None:
        from safetensors import SafetensorError, safe_open

        self.tensors: dict[str, Stored] = {}
        self._weights: dict[str, Tensor] | None = None
        for file in _files(model) if model is not None else []:
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (a handle is no mapping)
                        part = opened.get_slice(name)
                        code = _CODES.get(part.get_dtype(), "")
                        self.tensors[own_name(name)] = Stored(file, name, tuple(part.get_shape()), code)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} can't be read: {error}; is the download whole?") from None

    def take(self, weights: dict[str, Tensor]) -> None:
        """Reads `weights`, by name, from memory instead: where the files name their tensors otherwise than the model does."""
        self._weights = weights
        dtypes = {
            name: str(w.dtype).removeprefix("torch.") if w.is_floating_point() else "" for name, w in weights.items()
        }
        self.tensors = {name: Stored(Path(SINGLE), name, tuple(w.shape), dtypes[name]) for name, w in weights.items()}

    def rows(self, name: str, rows: slice) -> Tensor:
        """Returns some rows of a tensor (all of a scalar)."""
        from safetensors import safe_open

        if self._weights is not None:
            return self._weights[name][rows] if self.tensors[name].shape else self._weights[name]

        # Opened each time: an open file keeps every page that was read in memory.
        stored = self.tensors[name]
        with safe_open(stored.file, "pt") as opened:
            return opened.get_slice(stored.key)[rows].clone() if stored.shape else opened.get_tensor(stored.key)


def _files(model: str) -> list[Path]:
    from transformers.utils import cached_file

    single, index = (cached_file(model, n, _raise_exceptions_for_missing_entries=False) for n in (SINGLE, INDEX))
    if single:
        return [Path(single)]
    if not index:
        raise UserError(
            f"{model} has no {SINGLE} and no {INDEX}, and other kinds of weights are not merged here; type --base with "
            "a copy that transformers' save_pretrained wrote"
        )
    try:
        names = sorted(set(read_json(Path(index))["weight_map"].values()))
        return [Path(str(cached_file(model, name))) for name in names]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"what {index} lists can't be read: {error}; is the download whole?") from None


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Returns the slices of rows in which a tensor is read; one for a vector or a scalar."""
    if len(shape) < 2:
        return [slice(None)]
    step = max(1, ROWS // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def replace_rows(file: Path, key: str, blocks: Iterable[Tensor]) -> None:
    """Writes the rows of a tensor, in its file's dtype, over those that the file has of it."""
    with open(file, "r+b") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        start, end = json.loads(opened.read(size))[key]["data_offsets"]
        opened.seek(8 + size + start)
        for rows in blocks:
            opened.write(_bytes(rows))
        if opened.tell() != 8 + size + end:
            raise RuntimeError(f"{key} was written over with another number of bytes")


@contextmanager
def new_shard(path: Path, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> Iterator[Callable[[Tensor], int]]:
    """Gives what appends the next rows, in the order of `shapes`, to a file of one dtype, and returns their bytes."""
    code = next(code for code, name in _CODES.items() if getattr(torch, name) == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        yield lambda rows: file.write(_bytes(rows))
        if file.tell() != 8 + len(text) + end:
            raise RuntimeError("a shard was closed before all of its tensors were written")


def _bytes(rows: Tensor) -> bytes:
    return rows.reshape(-1).view(torch.uint8).numpy().tobytes() if rows.numel() else b""
