"""Turns a run or an adapter into what other programs load: `python -m poweropd_lite.export RUN --to FORMAT`.

Read in this order: prepare.py (what will be done; job.py), source.py (the live model and its merge), folders.py and
gguf.py (the formats), proof.py (what must hold), handover.py (the folder), make.py (all in order), card.py, push.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.export.settings import ExportConfig, load_export_config

if TYPE_CHECKING:
    from poweropd_lite.export.make import Exported

__all__ = ["ExportConfig", "export", "load_export_config"]


def export(model: str | Path | ExportConfig, say: Callable[[str], None] = print, **settings: Any) -> "Exported":
    """Exports a run or an adapter: export("runs/a", to="gguf"), or a whole ExportConfig (make.export).

    `settings` are ExportConfig's, the command's flags. Raises UserError for what can be mended.
    """
    from poweropd_lite.export import make

    config = model if isinstance(model, ExportConfig) else load_export_config(model=model, **settings)
    return make.export(config, say)
