"""The report of audit and advise: files that are whole or absent, and its tables as text."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import flush_files, sync_folder, write_json, write_text


def check_out(out: str | None, parent: str) -> None:
    """Raises UserError if the report's folder could not be made: asked before anything loads.

    `parent` is where new folders go when `out` is not given.
    """
    path = Path(out or parent).resolve()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder for a report; type --out with the name of a new folder")
    if out is not None:
        _refuse_full(path)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write into {there}; type --out with a folder that you may write")


def write_report(
    out: str | None,
    parent: str,
    title: str,
    name: str,
    report: dict[str, Any],
    tables: str,
    draw: Callable[[Path], None],
    last_look: Callable[[], None],
) -> Path:
    """Writes `name`.json, `name`.md and `name`.png into one folder and returns it; what was there is never replaced.

    Without `out` it is a new folder in `parent`, named `title`, with a number behind it if that is taken.
    `last_look` is called when all is written but not in its place yet: what it raises leaves nothing. Raises UserError if the
    disk won't take it, or if something else has been put into the folder in the meantime.
    """
    made: list[Path] = []
    try:
        path = Path(out).resolve() if out is not None else _free_folder(Path(parent), title, made)
        if out is not None:
            _make(path, made)
            _refuse_full(path)
        beside = Path(tempfile.mkdtemp(dir=path, prefix=".writing-"))
        try:
            write_json(beside / f"{name}.json", report)
            write_text(beside / f"{name}.md", tables)
            draw(beside / f"{name}.png")
            flush_files(beside)
            last_look()
            for file in sorted(beside.iterdir()):
                os.replace(file, path / file.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(path)
    except BaseException as error:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # not empty: somebody else's by now
                folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                f"can't write the report: {error.strerror or error} ({error.filename}); nothing half-written is left"
            ) from error
        raise
    return Path(out) if out is not None else path


def _refuse_full(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty, and a report never writes over another; type another --out")


def _make(path: Path, made: list[Path]) -> None:
    """Makes a folder and its parents, and adds to `made` those that were not there."""
    for folder in [*reversed(path.parents), path]:
        if not folder.exists():
            folder.mkdir()
            made.append(folder)


def report_title(report: dict[str, Any]) -> str:
    """Returns what a report is of, as the name of a folder: the pair, the teacher's bits and the reward."""
    student, teacher = (Path(report[role].rstrip("/")).name or "model" for role in ("student", "teacher"))
    pair = student if student == teacher else f"{student}-{teacher}"
    return f"{pair}-{report['teacher_bits']}bit-{report['reward'].replace(' ', '')}"


def _free_folder(parent: Path, name: str, made: list[Path]) -> Path:
    if not parent.exists():
        _make(parent.absolute(), made)
    for number_behind in range(1, 10**6):
        path = parent / (name if number_behind == 1 else f"{name}-{number_behind}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        made.append(path)
        return path
    raise UserError(f"{parent} holds a million reports named {name}; type --out")
