"""The paper's tables on one card: `python -m poweropd_lite.reproduce --preset smoke`, or `reproduce(preset="smoke")`.

A resumable queue of train and evaluate runs in one folder. Read in this order: settings.py (what may be asked for), grid.py (the
runs that it means), state.py (the state file), run.py (the whole), work.py and child.py (processes), estimate.py (time);
then results.py and stats.py (numbers), tables.py, cost.py and pages.py (files).
"""

from poweropd_lite.reproduce.run import reproduce

__all__ = ["reproduce"]
