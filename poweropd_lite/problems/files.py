"""Rows of JSON, JSONL and Parquet files, or of a folder that holds one such set in several files (shards)."""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.explained import explained, not_downloaded
from poweropd_lite.base.files import digest

SUFFIXES = (".jsonl", ".json", ".parquet")  # in small letters or large ones
TABLES = (".csv", ".tsv", ".xlsx")  # which are not read
_SHARD = re.compile(r"(?:(.*?)[-_.])?(\d+)(-of-\d+)?")  # train-00000-of-00002, part-0001, 0000
_KINDS = "a JSON, JSONL or Parquet file"


def file_rows(path: Path, flag: str, columns: Collection[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, the row) of a file, or of a folder's files in the order of their names.

    A row that can't be read is the reason, as text. Of Parquet's columns only `columns` are read, where given; the others
    are there as None. Raises UserError, to type `flag` otherwise, for what can't be read at all.
    """
    for file in shards(path, flag):
        if fault := not_downloaded(file):
            raise UserError(fault)
        if file.suffix.lower() == ".parquet":
            yield from _parquet(file, flag, columns)
            continue
        try:
            with open(file, encoding="utf-8-sig") as lines:  # a byte-order mark is no part of the first row
                listed = _items(file, lines.read()) if file.suffix.lower() == ".json" else _array(file, lines)
                yield from _lines(file, lines) if listed is None else listed
        except OSError as error:
            raise UserError(f"can't read {file}: {error.strerror}; type {flag} with a file that you may read") from None
        except UnicodeDecodeError as error:
            odd = f"byte {error.object[error.start]:#x}: {error.reason}"
            raise UserError(f"{file} is not UTF-8 text ({odd}); type {flag} with {_KINDS}") from None


def shards(path: Path, flag: str = "--data") -> list[Path]:
    """Returns the one file, or the files of a folder, in order; raises UserError where they are none or of several sets."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        sets = _sets(found)
        if not found:
            raise UserError(f"the folder {path} holds no {', '.join(SUFFIXES)} file; type {flag} with one, or {_KINDS}")
        if len(sets) > 1:
            raise UserError(
                f"the folder {path} holds several sets ({', '.join(sets[:5])}); type {flag} with one file of it"
            )
        return found
    if not path.is_file():
        raise UserError(f"no file of problems at {path}; type {flag} with {_KINDS}, or a hub id")
    if path.suffix.lower() in TABLES:
        mend = f"type {flag} with {_KINDS}: pandas.read_csv(...).to_json(..., orient='records', lines=True)"
        raise UserError(f"{path} is a table of a kind that is not read here; {mend}")
    return [path]


def _sets(files: list[Path]) -> list[str]:
    """The first file of each set. aime24 and aime25, data_v1 and data_v2 or math-100 and math-500 are two each."""
    numbered: dict[tuple[str | None, str, bool], list[tuple[str, str]]] = {}
    sets = []
    for file in files:
        if shard := _SHARD.fullmatch(file.stem):
            key = shard[1], file.suffix, bool(shard[3])
            numbered.setdefault(key, []).append((shard[2], file.name))
        else:
            sets.append(file.name)
    for (_, _, of_so_many), group in numbered.items():
        numbers, names = zip(*group, strict=True)
        first, width = int(numbers[0]), len(numbers[0])
        counted = [f"{first + i:0{width}}" for i in range(len(numbers))] == list(numbers)
        sets += names[:1] if of_so_many or (counted and width > 1 and first < 2) else names
    return sorted(sets)


def row_count(path: Path) -> int:
    """Returns how many rows a Parquet file has, how many line ends JSONL, and 0 of JSON, whose lines are no rows."""
    if path.suffix.lower() == ".json":
        return 0
    if path.suffix.lower() != ".parquet":
        with open(path, "rb") as file:
            return sum(some.count(b"\n") for some in iter(lambda: file.read(1 << 20), b""))
    import pyarrow.parquet

    with explained(f"{path} is not a Parquet file", str(path), "type --data with one that is whole"):
        return pyarrow.parquet.ParquetFile(path).metadata.num_rows


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file of problems, or of the digests of a folder's; raises as `shards`."""
    found = [digest(file) for file in shards(path)]
    return found[0] if path.is_file() else hashlib.sha256("".join(found).encode()).hexdigest()


def _items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; a file with one object a line must end in .jsonl") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of objects, but holds a {type(rows).__name__}")
    return ((f"{path}, item {i}", row if isinstance(row, dict) else "not an object") for i, row in enumerate(rows, 1))


def _array(path: Path, file: Any) -> Iterator[tuple[str, Any]] | None:
    """The items of a JSON array that is named .jsonl; None, and the file at its beginning, for one with a row a line."""
    start, text = file.read(100), ""
    file.seek(0)
    if start.lstrip().startswith("["):
        text = file.read()
        file.seek(0)
    with contextlib.suppress(ValueError, RecursionError):
        if text and isinstance(rows := json.loads(text), list) and any(isinstance(row, dict) for row in rows):
            return _items(path, text)
    return None


def _lines(path: Path, file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for i, line in ((i, line) for i, line in enumerate(file, 1) if line.strip()):  # they end at "\n" alone
        try:
            row = json.loads(line.removesuffix("\n"))
            yield f"{path}, line {i}", row if isinstance(row, dict) else "not an object"
        except json.JSONDecodeError as error:
            yield f"{path}, line {i}", f"not JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
            yield f"{path}, line {i}", f"not JSON that can be read ({error})"


def _parquet(path: Path, flag: str, columns: Collection[str] | None) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    mend = f"type {flag} with {_KINDS} that is whole"
    with explained(f"{path} is not a Parquet file", str(path), mend):
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{path} has the columns {', '.join(twice)} twice; write it with one of each")
        wanted = [name for name in names if columns is None or name in columns]
        batches = file.iter_batches(1024, columns=wanted)
    others, number = dict.fromkeys(names), 0
    while True:
        with explained(f"{path} can't be read", str(path), mend):  # a next one only: the block is left between two rows
            batch = next(batches, None)
            rows = [] if batch is None else _batch_rows(batch)
        if batch is None:
            return
        for row in rows:
            number += 1
            yield f"{path}, row {number}", {**others, **row}


def _batch_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch; a text that is not UTF-8 stays bytes."""
    import pyarrow

    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = []
        for column in batch.columns:
            text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
            columns.append(
                [decoded(v) for v in column.cast(pyarrow.binary()).to_pylist()] if text else column.to_pylist()
            )
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def decoded(value: Any) -> Any:
    """Returns bytes as the text that they are in UTF-8: Parquet writers may leave the type out; all else, and other bytes, as is."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value
