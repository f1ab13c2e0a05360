"""Which alpha, which reward? `python -m poweropd_lite.advise`, or `advise(load_config("bundled", alpha=50))`.

One set of rollouts is replayed through all of them. Read in this order: run.py, stats.py (of tokens), gradients.py, words.py, picture.py.
"""

from poweropd_lite.rehearse.advise import advise

__all__ = ["advise"]
