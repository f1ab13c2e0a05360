"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate`, or `evaluate(load_eval_config(model=...))`.

Read in this order: agenda.py (what will be done, settled before anything loads; target.py, serve.py), sampling.py
(answers), scores.py (Avg@n, Pass@k, intervals), folder.py (the files), results.py, tables.py (what is shown), paper.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from poweropd_lite.evaluate.settings import EvalConfig, load_eval_config

if TYPE_CHECKING:
    from poweropd_lite.evaluate.evaluation import Evaluated

__all__ = ["EvalConfig", "evaluate", "load_eval_config"]


def evaluate(config: EvalConfig, say: Callable[[str], None] = print) -> "Evaluated":
    """Evaluates a model, or goes on with it (evaluation.evaluate)."""
    from poweropd_lite.evaluate import evaluation

    return evaluation.evaluate(config, say)
