"""What is asked for now, put together with what the folder holds: the same command goes on, more of the grid joins, and other
settings of the same runs are refused.
"""

from pathlib import Path
from typing import Any

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.reproduce import results
from poweropd_lite.reproduce.grid import load_pairs, make_tasks
from poweropd_lite.reproduce.settings import (
    AXES,
    SCORING,
    ReproduceConfig,
    alpha_values,
    column_names,
    reward_names,
    seed_values,
)
from poweropd_lite.reproduce.state import DONE, FAILED, RUNNING, WAITING, Queue


def settle(
    asked: ReproduceConfig, training: dict[str, Any], given: set[str], there: Queue | None, out: Path
) -> tuple[Queue, int]:
    """Returns the queue with what is asked for in it, and how many of its runs are new; nothing is written.

    What was not given (by a flag or the preset) is as in the folder. Raises UserError for settings that differ from the folder's.
    """
    queue = there or Queue(out)
    if there is None and not asked.pairs:
        raise UserError(
            f"nothing to reproduce yet, for {out} holds no queue to go on with; type --preset smoke (a minute), --preset tiny (an hour on two cores), --preset paper, "
            "or --pairs with the pairs that are meant"
        )
    if there is not None:
        kept = {axis: ",".join(there.axes[axis]) for axis in AXES if axis not in given}
        asked = asked.model_copy(update=kept)
    differing: list[str] = []
    pairs = _pairs(asked, training, given, queue, differing)
    for key in SCORING:
        if there is None or key in given:
            value = getattr(asked, key)
            if there is not None and value != there.scoring[key]:
                differing.append(f"{key} {there.scoring[key]} there, {value} now")
            queue.scoring[key] = value
    if differing:
        raise UserError(
            f"{out} was begun with other settings ({'; '.join(differing)}); leave them as they were to go on with it, or type "
            "--out with a new folder"
        )
    if queue.scoring["benchmarks"] is not None:
        from poweropd_lite.problems.benchmarks import find_benchmarks

        find_benchmarks(queue.scoring["benchmarks"], queue.scoring["benchmark_folder"])
    queue.pairs |= pairs
    before = len(queue.runs)
    for task in make_tasks(asked, pairs, queue.pairs):
        queue.add(task)
    found = {
        "pairs": list(pairs),
        "rewards": reward_names(asked.rewards),
        "alphas": [f"{alpha:g}" for alpha in alpha_values(asked.alphas)],
        "seeds": [str(seed) for seed in seed_values(asked.seeds)],
        "columns": column_names(asked.columns),
    }
    for axis in AXES:
        queue.axes[axis] = list(dict.fromkeys([*queue.axes[axis], *found[axis]]))
    return queue, len(queue.runs) - before


def _pairs(
    asked: ReproduceConfig, training: dict[str, Any], given: set[str], queue: Queue, differing: list[str]
) -> dict[str, dict[str, Any]]:
    """Returns the pairs that are meant, with training's settings; adds to `differing` where the folder's are others."""
    here = queue.pairs
    for values in here.values():  # settings typed now are those of every pair in the folder
        now = load_config(**values | training | {"score": "full"})
        for key in training:
            said = any(words.startswith(f"{key} ") for words in differing)
            if not said and key in values and getattr(now, key) != values[key]:
                differing.append(f"{key} {values[key]} there, {getattr(now, key)} now")
    if "pairs" not in given or not asked.pairs:
        return dict(here)
    queue.training |= {k: v for k, v in training.items() if k not in queue.training}
    if differing:
        return {}
    found = load_pairs(asked.pairs, queue.training)
    for name, values in found.items():
        there = here.get(name)
        differing += [
            f"{key} of {name} {there[key]} there, {value} now"
            for key, value in values.items()
            if there is not None and key in there and there[key] != value
        ]
    return found


def set_right(queue: Queue, retry: bool) -> list[str]:
    """Puts runs back that a killed queue left as running, that lost their files or, if `retry`, that failed; returns what is odd."""
    odd = []
    for task in queue.tasks():
        record, steps = queue.runs[task.name], queue.steps(task)
        if record["state"] == RUNNING:
            record["state"] = WAITING
        if record["state"] == FAILED and retry:
            record |= {"state": WAITING, "message": None}
        lost = record["state"] == DONE and not results.scored(queue.out, task, steps)
        if record["stage"] == "evaluate" and task.role == "run" and record["state"] != FAILED:
            gone = not results.trained(queue.out, task, steps)
            lost, record["stage"] = lost or gone, "train" if gone else "evaluate"
        if lost:
            odd.append(f"{task.name}: its files are gone or damaged, so it is run again")
            record["state"] = WAITING
    return odd
