"""The end of a process that has held vLLM: soon, and with all that it started, whatever a library waits for.

Left to itself, Python waits for every thread and then takes some thousand modules apart, which takes seconds after vLLM, and
more of them beside a card. Here what was registered for the end of the process still runs, for `SECONDS` at most; processes
that are left below this one are killed; the rest the system takes back.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SECONDS = 3.0  # that what was registered for the end of the process may take
_soon = False


def end_soon() -> None:
    """From now on this process is to end so; to be called by whoever brings up what may not end by itself."""
    global _soon
    _soon = True


def ends_soon() -> bool:
    """Whether this process is to end so."""
    return _soon


def end_process(code: int) -> NoReturn:
    """Ends the process with an exit code: soon, where that was asked for, or as sys.exit does."""
    if not _soon:
        sys.exit(code)
    timer = threading.Timer(SECONDS, _leave, [code])
    timer.daemon = True
    timer.start()
    try:
        atexit._run_exitfuncs()
    finally:
        _leave(code)


def within(seconds: float, work: Callable[[], object]) -> bool:
    """Does `work` in a thread of its own and waits for it; returns whether it was done in `seconds`."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _leave(code: int) -> NoReturn:
    for process in _below(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _below(process: int) -> list[int]:
    """Returns the processes that one has started, and theirs; on Linux, where vLLM is."""
    found: list[int] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it ended meanwhile
            for child in map(int, children.read_text().split()):
                found += [child, *_below(child)]
    return found
