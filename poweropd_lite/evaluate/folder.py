"""The folder of an evaluation: what was asked for, every sample, and the results; found again by a second start.

Its files: docs/evaluation.md. Samples are appended as they end. A line that a kill cut short is dropped, and its sample drawn
again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import append_text, parse_json, read_json, try_lock, write_json, write_text
from poweropd_lite.evaluate.sampling import Key
from poweropd_lite.problems.prompts import Prompt

SETTINGS = "settings.json"


class EvalFolder:
    """An open folder, locked by this process; the lock goes with it."""

    def __init__(self, path: Path) -> None:
        self.path, self._made = path, [folder for folder in (path, path.parent) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write into {path}: {error.strerror}; type another --output") from None
        lock = try_lock(path / ".lock", "--output")
        if lock is None:
            raise UserError(f"another process is evaluating into {path}; wait for it, or type another --output")
        self._lock, self._synced = lock, 0.0

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
        if (self.path / SETTINGS).exists():
            here = read_settings(self.path)
            if differing := differences(here, wanted, about["benchmarks"]):
                what = f"{self.path} holds samples of another evaluation ({'; '.join(differing)})"
                own = f", or --regrade {self.path} to score them anew" if wanted.get("grader") else ""
                raise UserError(f"{what}; type --output with the name of a new folder{own}")
            for key in _ABOUT:  # those that were evaluated before stay
                about = about | {key: here["about"][key] | about[key]}
        write_json(self.path / SETTINGS, {"settings": wanted, "about": about})

    def samples(self, name: str, wanted: Collection[Key]) -> set[Key]:
        """Returns which of the `wanted` samples of benchmark `name` are here; anything else is cut off."""
        found = {(r["problem"], r["sample"]): r for r in read_samples(self.path, name)}
        kept = {key: record for key, record in found.items() if key in wanted}
        file, lines = self.path / f"{name}.jsonl", "".join(map(_line, kept.values()))
        if file.exists() and file.read_text(encoding="utf-8", errors="replace") != lines:
            write_text(file, lines)
        return set(kept)

    def append(self, name: str, records: Sequence[dict]) -> None:
        """Adds samples that ended; a power cut may lose those of the last second, which are drawn again."""
        due = (now := time.monotonic()) - self._synced > 1.0  # a disk takes as long for it as a card for some tokens
        append_text(self.path / f"{name}.jsonl", "".join(map(_line, records)), to_disk=due)
        self._synced = now if due else self._synced

    def rewrite(self, name: str, records: Any) -> None:
        """Replaces the samples by `records`, in one step."""
        write_text(self.path / f"{name}.jsonl", "".join(map(_line, records)))


def folder_for(
    parent: Path, name: str, wanted: dict[str, Any], problems: dict[str, dict], kl_apart: bool = False
) -> Path:
    """Returns the first of NAME, NAME-2, ... in `parent` that is new, or that holds this very evaluation.

    With `kl_apart` an evaluation without problems (a KL alone) joins no folder that holds scores, nor scores one of a KL alone.
    """
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not (path / SETTINGS).exists():
            break
        here = read_settings(path)
        joins = not kl_apart or bool(problems) == bool(here["about"]["benchmarks"])
        if joins and not differences(here, wanted, problems):
            break
    return path


def differences(here: dict[str, Any], wanted: dict[str, Any], problems: dict[str, dict]) -> list[str]:
    """Returns in words how an evaluation that is here is another than the one that is wanted."""
    before = here["settings"]
    words = [f"{key} {before.get(key)} there, {now} now" for key, now in wanted.items() if before.get(key) != now]
    for name, these in problems.items():
        there = here["about"]["benchmarks"].get(name, these)
        if there != these:
            sizes = (f"{b['problems']} problems, answers of {b['longest']} tokens" for b in (there, these))
            other = "" if there["problems"] != these["problems"] else "; or other problems"
            words.append(f"{name}: {' there; '.join(sizes)} now{other}")
    return words


def read_settings(path: Path) -> dict[str, Any]:
    """Returns an evaluation's settings.json; raises UserError if there is none, or it is damaged."""
    try:
        settings = read_json(path / SETTINGS)
        about = settings["about"]
        sound = isinstance(settings["settings"]["n"], int) and all(isinstance(about[key], dict) for key in _ABOUT)
        if not sound or not all({"problems", "longest", "hash"} <= set(b) for b in about["benchmarks"].values()):
            raise ValueError("it lacks settings")
        return settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / SETTINGS} can't be read: {error}; type --output with a new folder") from None


_ABOUT = ("benchmarks", "whole", "sources")
_SAMPLE = {"problem": int, "sample": int, "question": str, "gold": str, "text": str, "tokens": int, "truncated": bool}


def read_samples(path: Path, name: str) -> list[dict]:
    """Returns the samples of a benchmark in file order, but not a last line that was cut short."""
    file = path / f"{name}.jsonl"
    records: list[dict] = []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            records += [_sound(parse_json(line))] if line else []
        except ValueError as error:
            if number < len(lines):  # the last has no newline behind it
                again = "remove the line, and it is drawn again"
                raise UserError(f"{file}, line {number} is damaged ({error}); {again}") from None
    return records


def _sound(record: Any) -> dict:
    if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in _SAMPLE.items()):
        raise ValueError("it is no sample")
    record.setdefault("tolerance", None)
    return record


def problems_record(prompts: Sequence[Prompt], longest: int) -> dict[str, Any]:
    """Returns what tells a set of problems from another: a hash of prompts and answers, and how long those may be."""
    digest = hashlib.sha256()
    for prompt in prompts:
        row = [] if prompt.row is None else [prompt.row]
        digest.update(json.dumps([prompt.ids, prompt.answer, prompt.tolerance, *row]).encode())
    return {"problems": len(prompts), "longest": longest, "hash": digest.hexdigest()[:16]}


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
