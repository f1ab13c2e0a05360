"""Training: `python -m poweropd_lite.train`, or `train(load_config("bundled", alpha=10))`. loop.py is the loop."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poweropd_lite.base.config import Config
    from poweropd_lite.run.recorder import Results


def train(
    config: "Config | None" = None, *, resume: str | Path | None = None, accept_changes: bool = False, **changes: Any
) -> "Results":
    """Runs a new training run of `config`, or goes on with the one in the folder `resume` (start.train)."""
    from poweropd_lite.train import start

    return start.train(config, resume=resume, accept_changes=accept_changes, **changes)
