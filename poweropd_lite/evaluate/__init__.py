"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate`, or `evaluate(load_eval_config(model=...))`.

Read in this order: plan.py (what will be done, settled before anything loads; target.py, benchmarks.py), sampling.py (answers),
scores.py (Avg@n, Pass@k, intervals), folder.py (the files), results.py and tables.py (what is shown), paper.py (the paper's own).
"""

from poweropd_lite.evaluate.run import Evaluated, evaluate

__all__ = ["Evaluated", "evaluate"]
