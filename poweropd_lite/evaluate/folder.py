"""The folder of an evaluation: what was asked for, every sample, and the results; found again by a second start.

    settings.json   what the samples depend on, and of which problems they are
    NAME.jsonl      a line a sample of benchmark NAME (docs/evaluation.md)
    results.json    the scores, with every setting beside them; results.md is the table

Samples are appended a batch at a time. A batch that a kill cut short is dropped and drawn again, as it was.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.evaluate.sampling import Key
from poweropd_lite.problems.prompts import Prompt


class EvalFolder:
    """An open folder, locked by this process; the lock goes with it."""

    def __init__(self, path: Path) -> None:
        self.path, self._made = path, [folder for folder in (path, path.parent) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f"another process is evaluating into {path}; wait for it, or type another --output"
            ) from None
        except OSError as error:
            raise UserError(f"can't write into {path}: {error.strerror}; type another --output") from None

    def __enter__(self) -> "EvalFolder":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None and self.path in self._made and not list(self.path.glob("*.jsonl")):  # nothing came of it
            shutil.rmtree(self.path, ignore_errors=True)
            if self.path.parent in self._made:
                with contextlib.suppress(OSError):  # another evaluation may be in it by now
                    self.path.parent.rmdir()
        os.close(self._lock)

    def settle(self, wanted: dict[str, Any], about: dict[str, Any]) -> None:
        """Writes down what the samples depend on (`wanted`, and the problems in `about`) and what is good to know.

        Raises UserError if the samples that are here depend on something else.
        """
        here = read_settings(self.path)
        if here is not None:
            differing = differences(here, wanted, about["benchmarks"])
            if differing:
                raise UserError(
                    f"{self.path} holds samples of another evaluation ({'; '.join(differing)}); type --output with the name of a "
                    "new folder"
                )
            for key in _ABOUT:  # those that were evaluated before stay
                about = about | {key: here["about"][key] | about[key]}
        write_json(self.path / "settings.json", {"settings": wanted, "about": about})

    def samples(self, name: str, batches: Sequence[Sequence[Key]]) -> dict[Key, dict]:
        """Returns the samples of benchmark `name` that are here, whole batches only; the rest of the file is cut off."""
        found: dict[Key, dict] = {}
        for record in read_samples(self.path, name):
            found[record["problem"], record["sample"]] = record
        whole = [key for batch in batches if all(key in found for key in batch) for key in batch]
        kept = {key: found[key] for key in whole}
        if len(kept) < len(found) or not _ends_well(self.path / f"{name}.jsonl"):
            self.rewrite(name, kept.values())
        return kept

    def append(self, name: str, records: Sequence[dict]) -> None:
        """Adds the samples of a batch."""
        with open(self.path / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, name: str, records: Any) -> None:
        """Replaces the samples by `records`, in one step."""
        write_text(self.path / f"{name}.jsonl", "".join(_line(record) for record in records))


def free_folder(parent: Path, name: str, wanted: dict[str, Any], problems: dict[str, dict]) -> Path:
    """Returns the first of NAME, NAME-2, ... in `parent` that is new, or that holds this very evaluation."""
    for number in range(1, 10**6):
        path = parent / (name if number == 1 else f"{name}-{number}")
        here = read_settings(path) if path.is_dir() else None
        if here is None or not differences(here, wanted, problems):
            return path
    raise UserError(f"{parent} holds a million evaluations named {name}; type --output")


def differences(here: dict[str, Any], wanted: dict[str, Any], problems: dict[str, dict]) -> list[str]:
    """Returns in words how an evaluation that is here is another than the one that is wanted."""
    before = here["settings"]
    words = [
        f"{key} {before.get(key)} there, {wanted.get(key)} now" for key in wanted if before.get(key) != wanted.get(key)
    ]
    for name, these in problems.items():
        there = here["about"]["benchmarks"].get(name, these)
        if there != these:
            words.append(
                f"{name}: {there['problems']} problems, answers of {there['longest']} tokens there; {these['problems']} and "
                f"{these['longest']} now" + ("" if there["problems"] != these["problems"] else "; or other problems")
            )
    return words


def read_settings(path: Path) -> dict[str, Any] | None:
    """Returns an evaluation's settings.json, or None where there is none; raises UserError if it is damaged."""
    try:
        settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
        about = settings["about"]
        sound = isinstance(settings["settings"]["n"], int) and all(isinstance(about[key], dict) for key in _ABOUT)
        if not sound or not all({"problems", "longest", "hash"} <= set(b) for b in about["benchmarks"].values()):
            raise ValueError("it lacks settings")
        return settings
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}/settings.json can't be read: {error}; type --output with a new folder") from None


_ABOUT = ("benchmarks", "whole", "sources")
_SAMPLE = {"problem": int, "sample": int, "question": str, "gold": str, "text": str, "tokens": int, "truncated": bool}


def read_samples(path: Path, name: str) -> list[dict]:
    """Returns the samples of a benchmark in file order, but not a last line that was cut short."""
    file = path / f"{name}.jsonl"
    if not file.exists():
        return []
    records = []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            if line:
                records.append(_sound(json.loads(line)))
        except ValueError as error:
            if number == len(lines):  # no newline came after it
                break
            raise UserError(
                f"{file}, line {number} is damaged ({error}); remove the line, and it is drawn again"
            ) from None
    return records


def _sound(record: Any) -> dict:
    if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in _SAMPLE.items()):
        raise ValueError("it is no sample")
    record.setdefault("tolerance", None)
    return record


def problems_record(prompts: Sequence[Prompt], longest: int) -> dict[str, Any]:
    """Returns what tells a set of problems from another: a hash of prompts as ids, and answers; and how long those may be."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.ids, prompt.answer, prompt.tolerance]).encode())
    return {"problems": len(prompts), "longest": longest, "hash": digest.hexdigest()[:16]}


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _ends_well(file: Path) -> bool:
    if not file.exists() or not file.stat().st_size:
        return True
    with open(file, "rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read() == b"\n"
