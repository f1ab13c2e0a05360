"""The paper's tables on one card: `python -m poweropd_lite.reproduce --preset smoke`, or `reproduce(preset="smoke")`.

A resumable queue of train and evaluate runs in one folder. Read in this order: settings.py (what may be asked for),
grid.py (the tasks that it means), state.py (the queue's folder), settle.py (what is asked for, and what is there),
sitting.py (the whole), forecast.py (does it fit, how long is left), work.py and child.py (processes); then rows.py
(numbers), tables.py, cost.py and sheets.py (files), pages.py (the report of all runs).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poweropd_lite.reproduce.sitting import Reproduced


def reproduce(say: Callable[[str], None] = print, **settings: Any) -> "Reproduced":
    """Trains and scores a grid of runs, or goes on with it, and writes its tables.

    Takes the settings of ReproduceConfig and, but for what the grid sets, of training's Config. Raises UserError for
    what the user can mend; runs that fail are kept, and said.
    """
    from poweropd_lite.reproduce import sitting

    return sitting.reproduce(say, settings)
