"""What runs did, as one page and its pictures: `python -m poweropd_lite.report RUN ...`, or `report(["runs/a"])`.

Read in this order: read.py (run folders), groups.py (seeds of one setting), series.py, ends.py and table.py (numbers),
words.py (what came out), pictures.py, end_pictures.py, reward_pictures.py, drawing.py (drawn from these numbers alone),
page.py (the page), write.py (the whole).
"""

from typing import TYPE_CHECKING, Any

__all__ = ["report"]

if TYPE_CHECKING:
    from poweropd_lite.report.write import report
else:

    def report(*runs: Any, **settings: Any) -> Any:
        """Makes the report of run folders (write.report)."""
        from poweropd_lite.report import write

        return write.report(*runs, **settings)
