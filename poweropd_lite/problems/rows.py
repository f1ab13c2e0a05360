"""Rows of problems, from the package, files or the hub; each with where it stands."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.explained import explained
from poweropd_lite.problems.bundled import problems
from poweropd_lite.problems.files import SUFFIXES, TABLES, decoded, file_rows, row_count, shards

BUNDLED_PROBLEMS = {False: 8192, True: 256}  # for training; held out, for evaluation


@dataclass(frozen=True)
class Source:
    """Where rows are read from."""

    data: str  # "bundled", a file, a folder of files, or a hub id
    subset: str | None = None
    split: str = "train"
    held_out: bool = False
    flag: str = "--data"  # what the user typed it with


def rows(source: Source, count: int | None = None, columns: Collection[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, the row); a row that can't even be read is the reason, as text.

    Of the bundled problems, which have no end, the first `count`; `columns` are those that will be looked at, if not all.
    Raises UserError when the source can't be read.
    """
    if source.data == BUNDLED:
        for i, problem in enumerate(problems(0, count or BUNDLED_PROBLEMS[source.held_out], source.held_out)):
            yield f"bundled problem {i}", {"problem": problem.question, "answer": str(problem.answer)}
        return
    path = Path(source.data)
    of_file = path.suffix.lower() in (*SUFFIXES, *TABLES) or path.exists()
    yield from file_rows(path, source.flag, columns) if of_file else _hub_rows(source)


def counted_rows(source: Source, columns: Collection[str] | None = None) -> tuple[Iterator[tuple[str, Any]], int]:
    """Returns the rows of a file, and how many they are or, of JSON and JSONL, how many line ends it has."""
    return rows(source, None, columns), sum(map(row_count, shards(Path(source.data))))


def _hub_rows(source: Source) -> Iterator[tuple[str, Any]]:
    import datasets

    what = f"can't load {source.data} (subset {source.subset}, split {source.split}) from the hub"
    mend = f"type {source.flag} with a hub id, or with a JSON, JSONL or Parquet file"
    with explained(what, source.data, mend):
        data = datasets.load_dataset(source.data, source.subset, split=source.split)
    yield from ((f"{source.data}, row {i}", row) for i, row in enumerate(data))


def row_as_json(row: dict[str, Any]) -> str:
    """Returns a row as JSON: bytes and dates as texts, and numbers that JSON has not (NaN) as null."""
    text = json.dumps(row, default=lambda value: str(decoded(value)))
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
