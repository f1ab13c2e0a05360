"""Safetensors read and written a few rows at a time, so that a model is never in memory whole.

The format is a JSON header behind its length in eight bytes, then the tensors' bytes in the header's order.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from poweropd_lite.base.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ROWS = 1 << 22  # elements that are read, merged and written at a time
_CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # torch's name for it; empty if it is no float


class Checkpoint:
    """The safetensors of a model (none for None), by tensor name, in the order of their files."""

    def __init__(self, model: str | None) -> None:
        self.tensors: dict[str, Stored] = {}
        for file in _files(model) if model is not None else []:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (a handle is no mapping)
                        part = opened.get_slice(name)
                        kind = _CODES.get(part.get_dtype(), "")
                        self.tensors[name] = Stored(file, tuple(part.get_shape()), kind)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} can't be read: {error}; is the download whole?") from None

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Returns some rows of a tensor (all of a scalar)."""
        from safetensors import safe_open

        # Opened each time: an open file keeps every page that was read in memory.
        with safe_open(self.tensors[name].file, "pt") as opened:
            return opened.get_slice(name)[rows].clone() if self.tensors[name].shape else opened.get_tensor(name)


def _files(model: str) -> list[Path]:
    from transformers.utils import cached_file

    found = {n: cached_file(model, n, _raise_exceptions_for_missing_entries=False) for n in (INDEX, SINGLE)}
    if found[SINGLE]:
        return [Path(found[SINGLE])]
    if not found[INDEX]:
        raise UserError(
            f"{model} has no {SINGLE} and no {INDEX}, and other kinds of weights are not merged here; type --base with a copy "
            "that transformers' save_pretrained wrote"
        )
    try:
        names = sorted(set(json.loads(Path(found[INDEX]).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{found[INDEX]} can't be read: {error}; is the download whole?") from None
    try:
        return [Path(cached_file(model, name)) for name in names]
    except OSError as error:
        raise UserError(f"a file of {model} is missing: {error}; is the download whole?") from None


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Returns the slices of rows in which a tensor is read; one for a vector or a scalar."""
    if len(shape) < 2:
        return [slice(None)]
    step = max(1, ROWS // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


class ShardWriter:
    """A safetensors file whose tensors' names, dtypes and shapes are known, and whose bytes come in that order."""

    def __init__(self, path: Path, entries: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        codes = {torch_name: code for code, torch_name in _CODES.items()}
        sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in entries.items():
            size = sizes[codes[dtype]] * math.prod(shape)
            header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.end = 8 + len(text) + end
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by the with statement it is used in)
        self.file.write(struct.pack("<Q", len(text)) + text)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        whole = self.file.tell() == self.end
        self.file.close()
        if kind is None and not whole:
            raise RuntimeError("a shard was closed before all of its tensors were written")

    def append(self, rows: torch.Tensor) -> None:
        """Writes the next rows."""
        self.file.write(rows.contiguous().view(torch.uint8).numpy().tobytes() if rows.numel() else b"")
