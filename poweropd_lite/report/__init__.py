"""What runs did, as one page and its pictures: `python -m poweropd_lite.report RUN [RUN ...]`, or `report(["runs/a", "runs/b"])`.

Read in this order: read.py (run folders), series.py (the numbers under every figure), drawing.py, step_figures.py and
token_figures.py (drawn from these numbers alone), table.py (runs side by side), page.py (the page), run.py (the command's work).
"""

from poweropd_lite.report.run import report

__all__ = ["report"]
