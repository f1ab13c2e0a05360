"""Rows of problems, from the package, a JSON, JSONL or Parquet file, or the hub; each with where it stands."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.bundled import problems

BUNDLED_PROBLEMS = {False: 8192, True: 256}  # for training; held out, for evaluation


@dataclass(frozen=True)
class Source:
    """Where rows are read from."""

    data: str  # "bundled", a file or a hub id
    subset: str | None = None
    split: str = "train"
    held_out: bool = False
    flag: str = "--data"  # what the user typed it with


def rows(source: Source, count: int | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, the row); a row that can't even be read is the reason, as text.

    Of the bundled problems, which have no end, the first `count`. Raises UserError when the source can't be read.
    """
    if source.data == BUNDLED:
        for i, problem in enumerate(problems(0, count or BUNDLED_PROBLEMS[source.held_out], source.held_out)):
            yield f"bundled problem {i}", {"problem": problem.question, "answer": str(problem.answer)}
        return
    path = Path(source.data)
    of_file = path.suffix in (".json", ".jsonl", ".parquet") or path.exists()
    yield from _file_rows(path, source.flag) if of_file else _hub_rows(source)


def _file_rows(path: Path, flag: str) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise UserError(f"no file of problems at {path}; type {flag} with a JSON, JSONL or Parquet file, or a hub id")
    if path.suffix.lower() in (".csv", ".tsv", ".xlsx"):
        mend = f"type {flag} with a JSON, JSONL or Parquet file: pandas.read_csv(...).to_json(..., orient='records', lines=True)"
        raise UserError(f"{path} is a table of a kind that is not read here; {mend}")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a Parquet file: {error}") from None
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist(), 1))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first row
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; type {flag} with a file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; type {flag} with a JSON, JSONL or Parquet file") from None
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}; a file with one object a line must end in .jsonl") from None
        if not isinstance(rows, list):
            raise UserError(f"{path} must hold a list of objects, but holds a {type(rows).__name__}")
        for i, row in enumerate(rows, 1):
            yield f"{path}, item {i}", row if isinstance(row, dict) else "not an object"
        return
    for i, line in ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()):  # they end at "\n" alone
        try:
            row = json.loads(line)
            yield f"{path}, line {i}", row if isinstance(row, dict) else "not an object"
        except json.JSONDecodeError as error:
            yield f"{path}, line {i}", f"not JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
            yield f"{path}, line {i}", f"not JSON that can be read ({error})"


def _hub_rows(source: Source) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(source.data, source.subset, split=source.split)
    except Exception as error:  # the library raises dozens of kinds, of its own and of three others
        reason = " ".join(str(error).split())[:300]
        what = f"{source.data} (subset {source.subset}, split {source.split}) from the hub: {reason}"
        mend = f"type {source.flag} with a hub id, or with a JSON, JSONL or Parquet file"
        raise UserError(f"can't load {what}\n{mend}") from error
    yield from ((f"{source.data}, row {i}", row) for i, row in enumerate(data))


def decoded(value: Any) -> Any:
    """Returns bytes as the text that they are in UTF-8: Parquet writers may leave the type out; all else, and other bytes, as is."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value
