"""An export's folder: filled beside its place, and put there when it is whole and nothing of the user's is in the way."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import flush_files, read_json, refuse_full, sync_folder
from poweropd_lite.evaluate.target import EXPORT

REPORT = EXPORT


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError unless `out` is absent, empty, or (with `overwrite`) an earlier export and nothing else."""
    _clear_up(out.resolve())
    if out.is_symlink() and not out.exists():
        raise UserError(f"{out} is a link to nothing; type --output with the name of a new folder")
    if out.resolve() == Path.cwd():
        raise UserError(f"--output {out} is the folder you are in; type --output with the name of a new folder in it")
    files = _files_of_export(out)
    if files is None:
        refuse_full(out, "--output", f"holds no export ({REPORT})", hidden_too=True)
    elif not overwrite:
        raise UserError(f"{out} holds an export already; type --overwrite to replace it, or --output with a new folder")
    elif others := _others(out, files):
        raise UserError(
            f"{out} holds {len(others)} files that its export did not write, or that were changed since (for one "
            f"{others[0]}), which --overwrite would delete; move them, or type --output with a new folder"
        )


def _others(out: Path, files: dict[str, int]) -> list[str]:
    """What lies in an export's folder, by its path there, that is not as it wrote it: an empty folder and a link, too."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*")}
    return sorted(
        name
        for name, path in found.items()
        if name != REPORT
        and (path.is_symlink() or (name not in folders if path.is_dir() else files.get(name) != path.stat().st_size))
    )


def _files_of_export(folder: Path) -> dict[str, int] | None:
    """The files that an export wrote, with their bytes; None if there is no export."""
    try:
        report = read_json(folder / REPORT)
        return dict(report["files"]) if "proof" in report else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def handed_over(out: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` when the block ends well; else nothing is left of it.

    Raises UserError if the disk won't take it, or if something came to lie at `out` meanwhile.
    """
    from safetensors import SafetensorError

    out = out.resolve()
    made = [parent for parent in out.parents if not parent.exists()]
    mark = f"{uuid.uuid4().hex[:8]}-{os.getpid()}"
    beside, aside = (out.with_name(f".{out.name}.{word}-{mark}") for word in ("export", "replaced"))
    done = False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        for file in beside.rglob("*"):
            file.chmod(0o644 if file.is_file() else 0o755)  # safetensors writes files that only their owner can read
        flush_files(beside)
        check_place(out, overwrite)  # again: hours may have passed
        if out.exists():
            os.replace(out, aside)
        os.replace(beside, out)
        done = True
        sync_folder(out.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"can't write {out}: {error}; nothing is left of this export, and what was there before stands"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if done:
            shutil.rmtree(aside, ignore_errors=True)
            if aside.exists():
                print(f"{aside}, what was there before, can't be removed; the next export to {out.name} tries again")
        elif aside.exists() and not out.exists():
            os.replace(aside, out)
        for parent in made if not done else []:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _clear_up(out: Path) -> None:
    """Removes what an export to the same place left when it was killed; brings back what it had moved aside."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.(export|replaced)-[0-9a-f]{{8}}-([0-9]+)")
    for left in sorted(out.parent.iterdir()) if out.parent.is_dir() else []:
        found = ours.fullmatch(left.name)
        if found is None or _is_alive(int(found[2])):
            continue
        if ".replaced-" in left.name and not out.exists():
            os.replace(left, out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
