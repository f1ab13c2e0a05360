"""Prompts of a large file on disk: read and tokenized at the first start, taken from there a row at a time at every later one.

They are kept where Hugging Face libraries keep what they make: `$HF_HOME/assets/poweropd_lite/prompts`, or what
HF_ASSETS_CACHE names; anything there may be deleted at any time. A folder is named by all that its prompts depend on (the
file's digest, the tokenizer's files, settings, versions, this code), whole or absent, and checked when it is opened.
"""

import hashlib
import json
import os
import struct
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import digest, try_lock
from poweropd_lite.problems.files import shards
from poweropd_lite.problems.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE = 50_000_000  # bytes of a file, from which on its prompts are kept: some twenty seconds of reading
ROWS, INDEX, ABOUT = "prompts.bin", "index.bin", "about.json"
FILES = (ROWS, INDEX, ABOUT)
_ELSEWHERE = "HF_ASSETS_CACHE (export HF_ASSETS_CACHE=FOLDER)"
_PLACE = struct.Struct("=qqq32s32s")  # where ids begin, the text begins and ends; digests of ids and of messages


def is_large(path: Path) -> bool:
    """Whether the prompts of a file, or of a folder of shards, are kept."""
    return path.exists() and sum(file.stat().st_size for file in shards(path)) >= LARGE


class Stored(Sequence[Prompt]):
    """The prompts in a folder, but those of the rows `out`. Nothing of them is held; `about` is what was said of all."""

    def __init__(self, folder: Path, out: Sequence[int] = ()) -> None:
        self.folder, self._out = folder, sorted(out)
        self._before = [row - n for n, row in enumerate(self._out)]  # prompts that stand before each row left out
        # They stay open, so a run goes on when the folder is deleted.
        self._rows, self._index = (open(folder / name, "rb", buffering=0) for name in (ROWS, INDEX))  # noqa: SIM115
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self._length = os.fstat(self._index.fileno()).st_size // _PLACE.size - len(self._out)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        found = range(self._length)[place]
        return self._prompt(found) if isinstance(found, int) else [self._prompt(i) for i in found]

    def _prompt(self, place: int) -> Prompt:
        index = os.pread(self._index.fileno(), _PLACE.size, self._row(place) * _PLACE.size)
        start, text, end, _, _ = _PLACE.unpack(index)
        found = os.pread(self._rows.fileno(), end - start, start)
        question, answer, tolerance, messages, teacher_ids, row = json.loads(found[text - start :])
        ids, said = tuple(array("i", found[: text - start])), tuple((role, content) for role, content in messages)
        return Prompt(ids, question, answer, tolerance, said, tuple(teacher_ids), row)

    def _row(self, place: int) -> int:
        return place + bisect_right(self._before, place)

    def digests(self, which: int) -> Iterator[bytes]:
        """Yields the digest of every prompt's ids (0) or messages (1)."""
        out, row = set(self._out), 0
        with open(self.folder / INDEX, "rb") as file:
            while some := file.read(_PLACE.size * 4096):
                for _, _, _, *both in _PLACE.iter_unpack(some):
                    if row not in out:
                        yield both[which]
                    row += 1

    def without(self, places: Iterable[int]) -> "Stored":
        """Returns the others."""
        return Stored(self.folder, [*self._out, *map(self._row, places)])


def ids_digests(prompts: Sequence[Prompt]) -> Iterator[bytes]:
    """Yields every prompt's `ids_digest`."""
    return prompts.digests(0) if isinstance(prompts, Stored) else (prompt.ids_digest for prompt in prompts)


def digest_of_ids(prompts: Sequence[Prompt]) -> str:
    """Returns the SHA-256 of what is read of all prompts, in order: by it inputs.json knows what a run was trained on."""
    of_all = hashlib.sha256()
    for each in ids_digests(prompts):
        of_all.update(each)
    return of_all.hexdigest()


def messages_digests(prompts: Sequence[Prompt]) -> Iterator[bytes]:
    """Yields every prompt's `messages_digest`."""
    return prompts.digests(1) if isinstance(prompts, Stored) else (prompt.messages_digest for prompt in prompts)


def tokens_used(prompts: Sequence[Prompt], role: str) -> set[int]:
    """Returns every id that the student or the teacher reads in a prompt (of stored ones, in those left out too)."""
    if isinstance(prompts, Stored):
        return set(prompts.about["tokens"][role])
    return {i for p in prompts for i in read_by(p, role)}


def read_by(prompt: Prompt, role: str) -> tuple[int, ...]:
    """Returns the ids that the student or the teacher reads."""
    return prompt.teacher_ids or prompt.ids if role == "teacher" else prompt.ids


def without(prompts: Sequence[Prompt], places: Iterable[int]) -> Sequence[Prompt]:
    """Returns the prompts but those at some places."""
    if isinstance(prompts, Stored):
        return prompts.without(places)
    out = set(places)
    return [prompt for place, prompt in enumerate(prompts) if place not in out]


class Writer:
    """Writes prompts into two files, one behind the other."""

    def __init__(self, rows: BinaryIO, index: BinaryIO) -> None:
        self._rows, self._index, self._end = rows, index, 0
        self.tokens: dict[str, set[int]] = {"student": set(), "teacher": set()}  # that each reads in any prompt

    def add(self, prompt: Prompt) -> None:
        """Writes a prompt behind those before."""
        rest = [prompt.question, prompt.answer, prompt.tolerance, prompt.messages, prompt.teacher_ids, prompt.row]
        ids, text = array("i", prompt.ids).tobytes(), json.dumps(rest).encode()
        middle, end = self._end + len(ids), self._end + len(ids) + len(text)
        self._rows.write(ids + text)
        self._index.write(_PLACE.pack(self._end, middle, end, prompt.ids_digest, prompt.messages_digest))
        self._end = end
        for role, used in self.tokens.items():
            used.update(read_by(prompt, role))


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Gives what writes prompts into a folder."""
    with open(folder / ROWS, "wb") as rows, open(folder / INDEX, "wb") as index:
        yield Writer(rows, index)


def folder_of(path: Path, content: str, tokenizer: "PreTrainedTokenizerBase", settings: Sequence[Any]) -> Path:
    """Returns where the prompts of a file, whose digest is `content`, are kept, or will be. Raises UserError where nothing can be written there."""
    from huggingface_hub import cached_assets_path

    with TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        files = _digests(Path(saved).rglob("*"))
    package = Path(__file__).parents[1]
    code = _digests([*(package / "problems").glob("*.py"), package / "grade" / "answers.py"])
    versions = [version(name) for name in ("transformers", "tokenizers", "jinja2")]
    parts = [content, path.suffix, files, code, versions, *settings]
    try:
        parent = cached_assets_path("poweropd_lite", "prompts", "1")
    except (OSError, ValueError) as error:
        raise UserError(f"can't keep the prompts of {path}: {error}; type another {_ELSEWHERE}") from None
    return parent / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _digests(files: Iterable[Path]) -> list[tuple[str, str]]:
    return [(file.name, digest(file)) for file in sorted(files) if file.is_file()]


@contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A context that one process at a time is in, by a lock beside `folder`; the others wait. Raises UserError."""
    path, waits = folder.with_name(f".{folder.name}.lock"), False
    while (lock := try_lock(path, _ELSEWHERE)) is None:
        if not waits:
            say(f"another process is at {folder}: waiting for it")
        waits = True
        time.sleep(0.5)
    try:
        yield
    finally:
        os.close(lock)
