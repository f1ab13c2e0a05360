"""Export: a run or an adapter as what other programs load, proven before it is handed over.

`python -m poweropd_lite.export RUN --to FORMAT`, or `export(load_export_config(model=..., to=...))`. Read in this order:
plan.py (what will be done), source.py (the live model), proof.py (what must hold), the formats in folders.py and gguf.py,
card.py and push.py.
"""

from poweropd_lite.export.run import Exported, export

__all__ = ["Exported", "export"]
