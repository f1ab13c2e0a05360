"""Becomes one of the package's commands, and is told by the system when the queue that started it dies (Linux).

    python -m poweropd_lite.reproduce.child PARENT poweropd_lite.train --config ...

The queue can't tell its children itself when it is killed with SIGKILL; so the kernel sends them SIGTERM, on which a run saves.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; it outlives execv


def main(argv: list[str]) -> None:
    """Sets the signal, and gives way to `python -m MODULE FLAGS`."""
    parent, module, *flags = argv
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before the line above
            sys.exit(128 + signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", module, *flags])


if __name__ == "__main__":
    main(sys.argv[1:])
