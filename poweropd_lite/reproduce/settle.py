"""What is asked for now, put together with what the folder holds; other settings of the same runs are refused."""

from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.benchmarks import find_benchmarks
from poweropd_lite.reproduce.grid import DONE, FAILED, RUNNING, WAITING, load_pairs, make_tasks
from poweropd_lite.reproduce.settings import AXES, SCORING, ReproduceConfig
from poweropd_lite.reproduce.state import Queue, is_trained, read_scores


def settle(config: ReproduceConfig, training: dict[str, Any], given: set[str], there: Queue | None, out: Path) -> Queue:
    """Returns the queue with what is asked for in it; nothing is written.

    What was not given (by a flag or the preset) is as in the folder. Raises UserError for settings that are others.
    """
    queue = there or Queue(out)
    if there is None and not config.pairs:
        presets = "--preset smoke (a minute), --preset tiny (an hour on two cores), --preset paper"
        raise UserError(f"{out} holds no queue to go on with; type {presets}, or --pairs with the pairs that are meant")
    # Settings of training that are typed now are those of every pair in the folder.
    now = {name: changed(pair, **training) for name, pair in queue.pairs.items()}
    pairs = load_pairs(config.pairs, queue.training | training) if "pairs" in given and config.pairs else now
    differing: dict[str, tuple[Any, Any]] = {}  # by setting: there, now
    for name, pair in queue.pairs.items():
        for key, value in pair:  # by pydantic, names and values
            if value != (typed := getattr(pairs.get(name, now[name]), key)):
                differing.setdefault(key, (value, typed))
    if there is not None:
        typed_scoring = {key: getattr(config, key) for key in SCORING if key in given}
        differing |= {k: (there.scoring[k], v) for k, v in typed_scoring.items() if v != there.scoring[k]}
        config = changed(config, **{axis: there.axes[axis] for axis in AXES if axis not in given})
    else:
        queue.scoring = {key: getattr(config, key) for key in SCORING}
    if differing:
        reasons = "; ".join(f"{key} {before} there, {now} now" for key, (before, now) in differing.items())
        ways = "leave them as they were to go on with it, or type --output with a new folder"
        raise UserError(f"{out} was begun with other settings ({reasons}); {ways}")
    if queue.scoring["benchmarks"] is not None:
        find_benchmarks(queue.scoring["benchmarks"], queue.scoring["benchmark_folder"])
    elif there is None:
        for name, pair in pairs.items():
            if pair.student != BUNDLED and (pair.hold_out or Path(pair.data).exists()):
                raise UserError(
                    f"{name} trains on data of its own, and nothing says what its runs, base student and teacher are scored on; "
                    "type --benchmarks with a file of other problems with answers, or --benchmarks all for the paper's"
                )
    queue.training |= training
    queue.pairs |= pairs
    for task in make_tasks(config, pairs, queue.pairs):
        kept = queue.tasks.setdefault(task.name, task)
        kept.pairs = list(dict.fromkeys([*kept.pairs, *task.pairs]))
    for axis in AXES:
        queue.axes[axis] = list(dict.fromkeys([*queue.axes[axis], *getattr(config, axis)]))
    return queue


def set_right(queue: Queue, retry: bool) -> list[str]:
    """Puts tasks back that a killed queue left as running, that lost their files or, if `retry`, that failed.

    Returns, in sentences, which lost their files.
    """
    lost = []
    for task in queue.tasks.values():
        if task.state == RUNNING or (task.state == FAILED and retry):
            task.state, task.message = WAITING, None
        gone = task.state == DONE and read_scores(queue, task) is None
        if task.role == "run" and task.stage == "evaluate" and task.state != FAILED and not is_trained(queue, task):
            gone, task.stage = True, "train"
        if gone:
            task.state = WAITING
            lost.append(f"{task.name}: its files are gone or damaged, so it is run again")
    return lost
