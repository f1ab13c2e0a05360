"""May the teacher be 4-bit at this alpha? `python -m poweropd_lite.audit`, or `audit(load_config("bundled", alpha=50))`.

On rollouts of the student. Read in this order: run.py, stats.py, words.py (the verdict), picture.py.
"""

from poweropd_lite.rehearse.audit import audit

__all__ = ["audit"]
