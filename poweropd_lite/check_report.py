"""The report of audit and advise: a folder that is whole or absent, and its tables as text."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from poweropd_lite.config import Config
from poweropd_lite.errors import UserError
from poweropd_lite.files import whole_folder, write_json, write_text


def check_out(out: str | None, parent: str) -> None:
    """Raises UserError if the report's folder could not be made: asked before anything loads.

    `parent` is where new folders go when `out` is not given.
    """
    path = Path(out or parent)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder for a report; type --out with the name of a new folder")
    if out is not None and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty, and a report never writes over another; type another --out")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write into {there}; type --out with a folder that you may write")


def write_report(
    out: str | None,
    parent: str,
    config: Config,
    name: str,
    report: dict[str, Any],
    tables: str,
    draw: Callable[[Path], None],
) -> Path:
    """Writes `name`.json, `name`.md and `name`.png in one step and returns their folder.

    Without `out` it is a new one in `parent`, named after student and teacher, with a number behind it if that is taken.
    """
    path = Path(out) if out is not None else _free_folder(Path(parent), _pair_name(config))
    try:
        with whole_folder(path) as folder:
            write_json(folder / f"{name}.json", report)
            write_text(folder / f"{name}.md", tables)
            draw(folder / f"{name}.png")
    except BaseException:
        if out is None:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    return path


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as a table for the screen: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells, the first being the head, as a Markdown table."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share as 12.3%, or - where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None, form: str = ".3g") -> str:
    """Returns a number, or - where there is none."""
    return "-" if value is None else format(value, form)


def _pair_name(config: Config) -> str:
    student, teacher = (Path(name.rstrip("/")).name or "model" for name in (config.student, config.teacher))
    return student if student == teacher else f"{student}-{teacher}"


def _free_folder(parent: Path, name: str) -> Path:
    for number_behind in range(1, 10**6):
        path = parent / (name if number_behind == 1 else f"{name}-{number_behind}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"can't make {path}: {error.strerror}; type --out with a folder that you may write"
            ) from None
        return path
    raise UserError(f"{parent} holds a million reports named {name}; type --out")
