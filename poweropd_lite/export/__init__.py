"""Turns a run or an adapter into what other programs load: `python -m poweropd_lite.export RUN --to FORMAT`.

Read in this order: prepare.py (what will be done; job.py), source.py (the live model and its merge), folders.py and
gguf.py (the formats), proof.py (what must hold), handover.py (the folder), make.py (all in order), card.py, push.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from poweropd_lite.export.settings import ExportConfig, load_export_config

if TYPE_CHECKING:
    from poweropd_lite.export.make import Exported

__all__ = ["ExportConfig", "export", "load_export_config"]


def export(config: ExportConfig, say: Callable[[str], None] = print) -> "Exported":
    """Exports a run or an adapter (make.export)."""
    from poweropd_lite.export import make

    return make.export(config, say)
