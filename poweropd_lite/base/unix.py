"""What only Unix has: locks on files, and how much memory a process has used. Without them there is no run, and one line says so."""

import sys

from poweropd_lite.base.errors import UserError

try:
    import fcntl
    import resource
except ImportError as error:
    # A lock keeps two programs out of one run, a fork and a timer end a grader: no half of it is handed out.
    raise UserError(
        f"found no {error.name} in this Python ({sys.platform}), so no run can be locked and no answer graded; "
        "poweropd_lite runs on Linux: on Windows, type the same commands in WSL ('wsl --install' sets it up)"
    ) from None

__all__ = ["fcntl", "resource"]
