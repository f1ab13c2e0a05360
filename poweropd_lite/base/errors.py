"""The one exception that is meant for users: its text is printed as it stands, without a traceback, and exit code 2."""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what was found, why it can't work, and what to type instead."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and IPython show in place of a traceback."""
        return [f"error: {self}"]


_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with its exit code.

    A UserError becomes one message and code 2, and so does a disk that is full or not ours to write; Ctrl-C, where nothing
    catches it, one word and code 130.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read the output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(f"error: {error.strerror}: {error.filename or 'writing the run folder'}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)
