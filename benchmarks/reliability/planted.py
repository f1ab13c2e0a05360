"""Runs a command in a process that dies, or whose disk fails, at one of its writes: `planted.py PLAN MODULE FLAGS...`

PLAN is JSON: `at`, the number of the write (from 0, in order; -1: none), the `fault` there, `log`, a file that lists them, and
`most`, the bytes that no file may grow beyond.

kill        SIGKILL; of what was being written, half is there
cut         the same, and what was never brought to the disk is gone, as where the power goes
ENOSPC ...  an error of that name, after half; from then on ENOSPC, EDQUOT and EROFS fail all that they would

A write is any opening for writing, write, fsync, rename, new folder or removal below the current folder, by Python, safetensors
or tokenizers. Only this process's own count: not those of what it starts.
"""

import builtins
import errno
import importlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poweropd_lite.cli import run_command

GROWS = {"open", "write", "mkdir", "rename", "fsync", "safetensors", "tokenizer"}  # what a full disk refuses
LASTING = ("ENOSPC", "EDQUOT", "EROFS")


class Disk:
    """Counts the writes of this process below a folder, and strikes at one of them."""

    def __init__(self, at: int, fault: str, log: str | None) -> None:
        self.at, self.fault, self.owner, self.root = at, fault, os.getpid(), os.getcwd()
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.seen, self.struck = 0, False
        self.safe: dict[str, int] = {}  # by file that was written: the bytes that are on the disk for sure

    def watched(self, path: Any, folder: int | None = None) -> str | None:
        """Returns the whole path of a file below the folder, or None; `folder` is what a relative path starts from."""
        if os.getpid() != self.owner:
            return None
        if isinstance(path, int):
            whole = os.readlink(f"/proc/self/fd/{path}")
        else:
            start = self.root if folder is None else os.readlink(f"/proc/self/fd/{folder}")
            whole = os.path.normpath(os.path.join(start, os.fsdecode(path)))
        return whole if whole.startswith(self.root + "/") else None

    def event(self, kind: str, path: str | None, half: Callable[[], object] = lambda: None) -> None:
        """Counts a write, about to happen; where it is to fail, `half` of it happens, and OSError is raised or all ends."""
        if path is None:
            return
        if self.log is not None:
            os.write(self.log, f"{kind} {path[len(self.root) + 1 :]}\n".encode())
        number, self.seen = self.seen, self.seen + 1
        lasting = self.struck and self.fault in LASTING and (kind in GROWS or self.fault == "EROFS")
        if number != self.at and not lasting:
            return
        self.struck = True
        if number == self.at and self.fault != "EROFS":
            half()
        if self.fault in ("kill", "cut"):
            if self.fault == "cut":
                for file, size in self.safe.items():
                    if os.path.exists(file) and os.path.getsize(file) > size:
                        os.truncate(file, size)
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(code := getattr(errno, self.fault), os.strerror(code), path)

    def written(self, path: str | None) -> None:
        """A file was opened for writing, or written by a library."""
        if path is not None:
            self.safe[path] = 0

    def moved(self, old: str | None, new: str | None) -> None:
        """A file or folder has another name."""
        if old is not None and new is not None:
            for file in [f for f in self.safe if f == old or f.startswith(old + "/")]:
                self.safe[new + file[len(old) :]] = self.safe.pop(file)


class Raw(io.FileIO):
    """A file whose writes are counted."""

    disk: Disk
    path: str

    def write(self, data: Any) -> int:
        part = bytes(data)
        self.disk.event("write", self.path, lambda: super(Raw, self).write(part[: len(part) // 2]))
        return super().write(data)


def plant(disk: Disk) -> None:
    """Puts the disk between Python and the system."""
    real = {name: getattr(os, name) for name in ("fsync", "replace", "mkdir", "rmdir", "unlink", "open", "sendfile")}
    real_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding=None, errors=None, newline=None, closefd=True, opener=None) -> Any:  # fmt: skip
        writes = set(mode) & set("wax+")
        path = disk.watched(file) if writes and not isinstance(file, int) and opener is None else None
        if path is None:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.event("open", path)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        raw.disk, raw.path = disk, path
        disk.safe.setdefault(path, os.path.getsize(path) if "a" in mode else 0)
        if buffering == 0:
            return raw
        whole = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline)

    def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            disk.event("open", disk.watched(path, dir_fd))
        return real["open"](path, flags, mode, dir_fd=dir_fd)

    def fsync(handle: int) -> None:
        path = disk.watched(handle)
        disk.event("fsync", path)
        real["fsync"](handle)
        if path in disk.safe:
            disk.safe[path] = os.path.getsize(path)

    def replace(old: Any, new: Any, *, src_dir_fd=None, dst_dir_fd=None) -> None:
        disk.event("rename", disk.watched(new))
        real["replace"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        disk.moved(disk.watched(old), disk.watched(new))

    def removing(kind: str, name: str) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            disk.event(kind, disk.watched(path, dir_fd))
            real[name](path, dir_fd=dir_fd)

        return remove

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        disk.event("mkdir", disk.watched(path, dir_fd))
        real["mkdir"](path, mode, dir_fd=dir_fd)

    def sendfile(out: int, *rest: Any, **more: Any) -> int:
        disk.event("write", disk.watched(out))
        return real["sendfile"](out, *rest, **more)

    builtins.open = io.open = opened  # type: ignore[assignment]
    os.open, os.fsync, os.mkdir, os.sendfile = os_open, fsync, mkdir, sendfile
    os.replace = os.rename = replace  # type: ignore[assignment]
    os.unlink = os.remove = removing("remove", "unlink")  # type: ignore[assignment]
    os.rmdir = removing("rmdir", "rmdir")  # type: ignore[assignment]
    _plant_libraries(disk)


def _plant_libraries(disk: Disk) -> None:
    """safetensors and tokenizers write by themselves; they say what the system said in errors of their own."""
    import safetensors.torch
    from safetensors import SafetensorError
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    def failing(kind: str, write: Callable[[], Any], file: str, error: type[Exception]) -> Any:
        def half() -> None:
            write()
            disk.written(disk.watched(file))
            os.truncate(file, os.path.getsize(file) // 2)

        try:
            disk.event(kind, disk.watched(file), half)
        except OSError as fault:
            raise error(f"I/O error: {fault.strerror} (os error {fault.errno})") from None
        done = write()
        disk.written(disk.watched(file))
        return done

    serialize, save = safetensors.torch.serialize_file, TokenizersBackend._save_pretrained

    def serialize_file(data: Any, filename: Any, *rest: Any, **more: Any) -> None:
        failing("safetensors", lambda: serialize(data, filename, *rest, **more), os.fspath(filename), SafetensorError)

    def save_pretrained(self: Any, save_directory: Any, *rest: Any, **more: Any) -> Any:
        file = os.path.join(save_directory, "tokenizer.json")
        return failing("tokenizer", lambda: save(self, save_directory, *rest, **more), file, Exception)

    safetensors.torch.serialize_file, TokenizersBackend._save_pretrained = serialize_file, save_pretrained


def main(plan: str, module: str, *flags: str) -> None:
    """The command line."""
    asked = json.loads(plan)
    if (most := asked.pop("most", None)) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    plant(Disk(**asked))
    command = importlib.import_module(f"{module}.__main__").main
    sys.argv = [module, *flags]
    run_command(lambda: command(list(flags)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(*sys.argv[1:])
