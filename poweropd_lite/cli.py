"""One command, `poweropd`, for all of them (`poweropd train` is `python -m poweropd_lite.train`), and how each of them ends.

Exit codes: 0 done, or sound; 1 the answer is no (it does not fit, is refused, not sound, some runs failed); 2 bad input;
128 + n stopped by signal n (130 Ctrl-C, 143 SIGTERM), with what there was saved; 141 whoever read the output went away.
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable

from poweropd_lite.base.config_files import nearest
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import Stopped

COMMANDS = {
    "train": "trains a student by on-policy distillation",
    "evaluate": "scores a model on maths benchmarks",
    "export": "turns a run into what other programs load, and proves it first",
    "doctor": "says whether a pair, its data and this machine are sound",
    "plan": "says whether a run fits a card, and how long it takes",
    "audit": "says whether the teacher may be 4-bit at this alpha",
    "advise": "says what each reward and alpha would do, before any training",
    "report": "draws what happened in some runs, as one page",
    "reproduce": "trains and scores a grid of runs, and makes the paper's tables",
    "ask": "puts one question to a student",
}
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: list[str] | None = None) -> int:
    """Hands the command line on to the command that it begins with; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: poweropd COMMAND ...\n")
        print("\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()))
        print("\npoweropd COMMAND --help explains each flag")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"no command named '{name}'{nearest(name, COMMANDS)}")
    module = importlib.import_module(f"poweropd_lite.{name}" + ("" if name == "ask" else ".__main__"))
    return module.main(rest)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with its exit code.

    A UserError becomes one message and code 2, and so does a disk that is full or not ours to write.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(f"error: {error.strerror}: {error.filename or 'writing the run folder'}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        code = 128 + stopped.signal
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


def console() -> None:
    """The `poweropd` script."""
    run_command(main)
