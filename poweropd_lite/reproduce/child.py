"""One of the package's commands in a process of its own, which ends with its queue and leaves its error as JSON.

    python -m poweropd_lite.reproduce.child PARENT FILE poweropd_lite.train --config ...

A queue that is killed with SIGKILL can't tell its children; the kernel sends them SIGTERM (Linux), and a run saves.
"""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.cli import run_command

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(command: list[str], failure: Path, **how: Any) -> subprocess.Popen:
    """Starts a command (module and flags). If an exception ends it, the file `failure` holds its `kind` and `message`."""
    failure.unlink(missing_ok=True)
    child = [sys.executable, "-m", "poweropd_lite.reproduce.child", str(os.getpid()), str(failure), *command]
    # A session of its own: a terminal's Ctrl-C reaches the queue alone, which passes on one.
    return subprocess.Popen(child, stdin=subprocess.DEVNULL, start_new_session=True, **how)


def main(argv: list[str]) -> None:
    """Runs `python -m MODULE FLAGS` in this process."""
    parent, failure, module, *flags = argv
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before the line above
            sys.exit(128 + signal.SIGTERM)

    def command() -> int | None:
        try:
            return importlib.import_module(f"{module}.__main__").main(flags)
        except Exception as error:
            kind = type(error).__name__
            message = str(error) if isinstance(error, UserError) else f"{kind}: {error}"
            write_json(Path(failure), {"kind": kind, "message": message})
            raise

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
