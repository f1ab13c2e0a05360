"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.base.unix import fcntl

MANIFEST = "manifest.json"
TRY = ".poweropd-try"  # a folder that is made for a moment


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in one step that a kill can't cut in two."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:  # a full disk, Ctrl-C: what was there before stands alone
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_text(path: Path, text: str, to_disk: bool = False) -> None:
    """Adds `text` to the end of a file, all of it or, where the disk refuses, nothing; `to_disk` waits until it is there."""
    rest = memoryview(text.encode())
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if to_disk:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)  # the next line would go on where half of this one ends
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text says; raises ValueError, also for brackets thousands deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets too deep to be read") from None


def read_json(path: Path) -> Any:
    """Returns what a JSON file says; raises OSError or ValueError."""
    return parse_json(path.read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Writes manifest.json: what `files` of a folder hold, by SHA-256. Last of all: a folder that has one was filled."""
    write_json(folder / MANIFEST, {"sha256": {file.name: digest(file) for file in sorted(files)}})


def files_in(folder: Path) -> dict[str, Path]:
    """Returns the files in a folder and in those inside it, by their path there, with / on any system."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def changed_since(folder: Path, needed: Iterable[str] = (), manifest: str = MANIFEST) -> str | None:
    """Returns which file of a folder is not what its manifest says, and how; None if all are. The manifest must list `needed`."""
    try:
        listed = read_json(folder / manifest)["sha256"]
        if missing := sorted(set(needed) - set(listed)):
            return f"{manifest} does not list {', '.join(missing)}"
        if outside := [name for name in listed if Path(name).is_absolute() or ".." in Path(name).parts]:
            return f"{manifest} lists {cut(outside[0])}, which is outside of the folder"
        wrong = [name for name, value in listed.items() if digest(folder / name) != value]
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return f"{name} is missing" + (
            " (it is written last, and earlier versions wrote none)" if name == manifest else ""
        )
    except OSError as error:
        return f"{Path(error.filename or manifest).name} can't be read: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{manifest} can't be read: {error}"
    return f"{', '.join(wrong)} does not hold what {manifest} says" if wrong else None


def free_folder(parent: Path, name: str) -> Path:
    """Makes and returns PARENT/NAME, or the first of PARENT/NAME-2, NAME-3, ... that is not taken."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def try_lock(path: Path, flag: str) -> int | None:
    """Returns an open file that holds the lock of `path`, None if another process has it. The lock goes with its last holder.

    Raises UserError where none can be made; `flag` names another place.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"can't write into {path.parent}: {error.strerror}; type another {flag}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise UserError(f"can't lock {path}: {error.strerror}; type {flag} on a disk with file locks") from None
    return handle


def refuse_full(path: Path, flag: str, why: str, hidden_too: bool = False) -> None:
    """Raises UserError unless `path` can become a new folder: it is absent, or a folder with nothing in it.

    Hidden files count only if they would be replaced (`hidden_too`): a run killed in its first moment leaves a lock, half a
    config. `flag` names another place.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:  # a name too long, a link to itself, a file in the way
        raise UserError(
            f"can't write into {cut(str(path))}: {error.strerror}; type {flag} with the name of a new folder elsewhere"
        ) from None
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; type {flag} with the name of a new folder")
    if path.is_dir() and any(hidden_too or not file.name.startswith(".") for file in path.iterdir()):
        raise UserError(f"{path} is not empty and {why}; type {flag} with the name of a new folder")


def check_writable(path: Path, flag: str) -> None:
    """Raises UserError if nothing could be made at `path`, found by making a folder beside it for a moment.

    Asked before anything loads: permissions alone do not tell of read-only disks, /proc, quotas, or names too long.
    """
    try:
        if not (there := existing(path)).is_dir():
            raise UserError(f"{there} is a file; type {flag} with the name of a new folder")
        with contextlib.suppress(FileExistsError):  # of a process that was killed here, or is here now
            os.mkdir(there / TRY)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(there / TRY)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        why = getattr(error, "strerror", None) or "its links lead nowhere"
        raise UserError(
            f"can't write into {cut(str(path))}: {why}; type {flag} with the name of a new folder elsewhere"
        ) from None


def existing(path: Path) -> Path:
    """Returns `path` if it is there, or the nearest folder that it would be made in."""
    return next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill; it becomes `path` when the block ends well, replacing it, and is gone when it does not.

    Raises UserError if the disk won't take it (full, read-only).
    """
    from safetensors import SafetensorError

    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        flush_files(beside)
        if path.exists():
            # Two renames, not one: between them `path` is absent, never half of each.
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
            os.replace(beside, path)
            shutil.rmtree(old)
        else:
            os.replace(beside, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"can't write {path}: {error}; nothing half-written is left, and what was there before stands"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def flush_files(folder: Path) -> None:
    """Waits until every file in a folder is on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until a folder's own list of files is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
