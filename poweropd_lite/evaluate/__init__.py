"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate`, or `evaluate("runs/power10-seed0", n=8)`.

Read in this order: agenda.py (what will be done, settled before anything loads; target.py, serve.py), sampling.py
(answers), scores.py (Avg@n, Pass@k, intervals), folder.py (the files), results.py, tables.py (what is shown), paper.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.evaluate.settings import EvalConfig, load_eval_config

if TYPE_CHECKING:
    from poweropd_lite.evaluate.evaluation import Evaluated

__all__ = ["EvalConfig", "evaluate", "load_eval_config"]


def evaluate(model: str | Path | EvalConfig, say: Callable[[str], None] = print, **settings: Any) -> "Evaluated":
    """Evaluates a model, or goes on with it: evaluate("runs/a", n=8), or a whole EvalConfig (evaluation.evaluate).

    `settings` are EvalConfig's, the command's flags. Raises UserError for what can be mended.
    """
    from poweropd_lite.evaluate import evaluation

    config = model if isinstance(model, EvalConfig) else load_eval_config(model=model, **settings)
    return evaluation.evaluate(config, say)
