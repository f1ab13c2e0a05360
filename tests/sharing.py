"""What takes long to make is made once for all workers of pytest-xdist, which else have their own session fixtures."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that the first worker to ask for it fills by `make`, for all of them; not to be changed."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = root / f"{name}.{os.getpid()}"
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder
