"""The one boundary between a user's files and the libraries that read them: whatever these raise becomes one message.

They raise some dozens of kinds, of their own and of others below them, for a folder that is not what it should be.
"""

import logging
import logging.handlers
import os
import queue
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poweropd_lite.base.errors import NotDownloaded, UserError, cut
from poweropd_lite.base.hub import settle_hub

_PLAIN = (OSError, ValueError, RuntimeError, ImportError)  # whose text says enough without the kind's name
_READ = (".json", ".jsonl", ".safetensors", ".bin", ".model", ".jinja", ".parquet", ".txt")


@contextmanager
def explained(what: str, where: str | None, mend: str) -> Iterator[None]:
    """Turns what libraries raise in the block, reading the folder, file or hub id `where`, into "WHAT: why" and `mend`.

    What they log or warn of on the way is said only if the block ends well. Memory that ran out and the card's own faults
    (memory.card_fault) stay what they are.
    """
    here = where is not None and os.path.exists(where)  # which is no error for a name too long
    unreachable = None if here or where is None else settle_hub()
    try:
        with _held_back():
            yield
    except UserError:
        raise
    except Exception as error:
        from poweropd_lite.base.memory import card_fault  # which imports torch

        if isinstance(error, RuntimeError | MemoryError) and card_fault(error):
            raise
        text = " ".join(str(error).split())
        why = text if text and isinstance(error, _PLAIN) else f"{type(error).__name__}: {text}".rstrip(": ")
        if not here and _only_on_the_hub(error):
            reason = f"{unreachable}, and it was not downloaded before" if unreachable else cut(why, 400)
            raise NotDownloaded(f"{what}: {reason}", mend) from error
        stand_in = not_downloaded(Path(where)) if here and where is not None else None
        why = stand_in or cut(f"{unreachable}; {why}" if unreachable else why, 400)
        raise UserError(f"{what}: {why}\n{mend}") from error


def _only_on_the_hub(error: BaseException | None) -> bool:
    """Whether the hub's library looked for something in its cache alone, and did not find it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error.__context__
    return error is not None


def not_downloaded(path: Path) -> str | None:
    """Returns which file at `path`, or in it, is only a stand-in for one that was not downloaded, and what to do; or None."""
    inside = sorted(p for p in path.iterdir() if p.suffix in _READ) if path.is_dir() else [path]
    for file in inside:
        try:
            with open(file, "rb") as content:
                head = content.read(200)
        except OSError:
            continue
        if head.startswith(b"version https://git-lfs"):
            return f"{file} is a git-lfs pointer, not the file itself: type git lfs pull in its folder"
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html")):
            return f"{file} is a page of HTML, such as an error or a login: download the file itself"
    return None


@contextmanager
def _held_back() -> Iterator[None]:
    """Keeps transformers' log and all warnings until the block has ended well."""
    logger, records = logging.getLogger("transformers"), queue.SimpleQueue[logging.LogRecord]()
    keeping, before, passed_on = logging.handlers.QueueHandler(records), logger.handlers, logger.propagate
    with warnings.catch_warnings(record=True) as warned:
        logger.handlers, logger.propagate = [keeping], False  # where CI is set, transformers passes on to the root
        try:
            yield
        finally:
            logger.handlers, logger.propagate = before, passed_on
    while not records.empty():
        logger.handle(records.get())
    for each in warned:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
