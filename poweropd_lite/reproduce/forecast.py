"""Whether a queue's runs fit a machine, and how long they take: plan is asked, and what is finished tells better.

Plan runs in processes of its own, so that the queue itself never imports torch and holds no memory of a card.
"""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from poweropd_lite import cli
from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import config_path, read_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.plan.settings import CannotPlan
from poweropd_lite.reproduce import child, grid
from poweropd_lite.reproduce.grid import DONE, RUNNING, STAGES, WAITING, Stage, Task, as_flags, everything, in_order
from poweropd_lite.reproduce.state import Forecast, Queue, json_or_none, read_steps, write_pairs

GIB = 2**30
POLL = 0.2  # seconds between looks at the processes, and at whether to stop


def make_forecasts(
    queue: Queue, typed: list[str], gpu: str | None, jobs: int, say: Callable[[str], None], stop: StopRequest
) -> None:
    """Asks plan about every pair and kind of run of which nothing is known yet; with `gpu`, about all, on that card.

    `typed` are the pairs as they stand in --pairs. Raises UserError for a pair that does not fit, and where plan refuses
    the models or their settings.
    """
    tasks: dict[tuple[str, str], Task] = {}
    for task in in_order(queue.tasks.values()):
        if task.role == "run" and task.state != DONE:
            tasks.setdefault((task.pair, task.kind), task)
    missing = [key for key in tasks if gpu or key[1] not in queue.forecasts.get(key[0], {})]
    if missing:
        say(f"planning {', '.join(map(' '.join, missing))}")
    firsts = {pair: (pair, kind) for pair, kind in reversed(missing)}  # an evaluation takes as long whatever the reward
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        folder = Path(name)
        write_pairs(folder, queue.pairs)

        def ask(key: tuple[str, str]) -> Forecast | None:
            pair, failure, scored = key[0], folder / f"{' '.join(key)}.json", None
            flags = as_flags({"config": f"{folder / pair}.yaml", "gpu": gpu, **tasks[key].settings()})
            try:
                report = _plan(pair, flags, failure, stop)
                if report and report["seconds"] and firsts[pair] == key:
                    # Apart, for the memory above is to be of what the run does itself.
                    scored = _plan(pair, [*flags, *_scoring_flags(queue, pair)], failure, stop)
            except CannotPlan as error:
                say(f"{pair}: {error}")
                return None
            return _forecast(report, key[1], scored, queue.scoring["n"]) if report else None

        asked = [pool.submit(ask, key) for key in missing]
        while wait(
            asked, POLL
        ).not_done:  # a wait without end does not hear a signal that comes in the moment it begins
            pass
        for (pair, kind), made in zip(missing, asked, strict=True):
            queue.forecasts.setdefault(pair, {})[kind] = made.result()
    for (pair, kind), task in tasks.items():
        if not stop and (forecast := queue.forecasts[pair][kind]):
            flags = plan_flags(queue, task, typed, gpu) if forecast.fits is False else ""
            check_fit(task, forecast, jobs, flags)


def _scoring_flags(queue: Queue, pair: str) -> list[str]:
    scoring = queue.scoring
    values = {"eval_benchmarks": scoring["benchmarks"] or everything(queue.pairs[pair]), "eval_samples": scoring["n"]}
    values |= {"eval_problems": scoring["problems"] or 10**6, "eval_max_new_tokens": scoring["answer_tokens"]}
    return as_flags(values)


def _plan(pair: str, flags: list[str], failure: Path, stop: StopRequest) -> dict[str, Any] | None:
    """Returns plan's report (docs/plan.md), None once a stop is asked for; raises what plan raised, or CannotPlan."""
    if stop:
        return None
    command = ["poweropd_lite.plan", *flags, "--json"]
    process = child.start(command, failure, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while True:
        try:
            out, _ = process.communicate(timeout=POLL)
            break
        except subprocess.TimeoutExpired:
            if stop:
                process.kill()  # it has nothing to save
    if stop:
        return None
    if process.returncode in (0, 1):  # it fits, or it does not
        return json.loads(out)
    failed = json_or_none(failure) or {"kind": None, "message": f"plan ended with code {process.returncode}"}
    if process.returncode == 2 and failed["kind"] != CannotPlan.__name__:
        raise UserError(f"{pair}: {failed['message']}")
    raise CannotPlan(failed["message"])


def _forecast(report: dict[str, Any], kind: str, scored: dict[str, Any] | None, n: int) -> Forecast:
    changes = report["changes"]
    return Forecast(
        machine=report["machine"],
        needed_bytes=report["needed_bytes"],
        usable_bytes=report["usable_bytes"],
        fits=report["fits"],
        changes=changes and {name: new for name, (_, new) in changes.items()},
        tflops=sum(report["tflops"].values()),
        paper_tflops=report["paper_tflops"]["full_vocabulary" if kind == "full_kl" else "update"],
        step_seconds=sum(report["seconds"]["step"].values()) if report["seconds"] else None,
        # Plan counts a greedy answer beside the n samples.
        evaluation_seconds=scored["seconds"]["evaluation"] * n / (n + 1) if scored else None,
    )


def plan_flags(queue: Queue, task: Task, typed: list[str], gpu: str | None) -> str:
    """Returns the flags with which plan is asked about a run by hand: its pair as typed, else the queue's own file of it."""
    own = queue.out / "pairs" / f"{task.pair}.yaml"
    files = {config_path(item).stem: item for item in typed if item != "all"}
    config = files.get(task.pair) or (str(own) if own.is_file() else task.pair)
    there = {name: field.get_default(call_default_factory=True) for name, field in Config.model_fields.items()}
    there |= read_yaml(config_path(config))
    values = {name: value for name, value in grid.run_config(queue.pairs[task.pair], task) if value != there[name]}
    return cli.as_flags({"config": config, **({"gpu": gpu} if gpu else {}), **values})


def check_fit(task: Task, made: Forecast, jobs: int, flags: str) -> None:
    """Raises UserError for a pair that does not fit the machine, or not so many times side by side; `flags` are plan's."""
    if made.usable_bytes is None:
        return
    needed, usable = made.needed_bytes / GIB, made.usable_bytes / GIB
    if made.fits is False:
        mend = f"it does with {cli.as_flags(made.changes)}" if made.changes else "no setting makes it fit"
        raise UserError(
            f"{task.pair} ({task.reward}) does not fit {made.machine}: it needs {needed:.1f} GiB, and {usable:.1f} can "
            f"be used; {mend} (python -m poweropd_lite.plan {flags} says more), or leave it out of --pairs"
        )
    if jobs > 1 and jobs * needed > usable:
        raise UserError(
            f"{jobs} runs of {task.pair} side by side need {jobs * needed:.1f} GiB by plan, and {made.machine} has "
            f"{usable:.1f}; type --jobs {max(1, int(usable / needed))}"
        )


def seconds_left(queue: Queue, elapsed: dict[str, float], planned: bool = False) -> float | None:
    """Returns the seconds that the rest of a queue takes, one task after another; None where nothing tells.

    A stage takes the mean of the finished ones of its kind (training, evaluation) and pair; before there is one, or with
    `planned`, for another machine than theirs, what plan says or, of a machine of which it knows no speed, as many steps like
    the median of those that runs in hand have taken. `elapsed` has by name for how long a process is at a task's stage.
    """
    left = 0.0
    for stage in STAGES:
        over = [task for task in queue.tasks.values() if task.state == DONE or stage != task.stage]
        over = [] if planned else [task for task in over if stage in task.seconds]
        for task in queue.in_state(WAITING, RUNNING):
            if task.stage not in (stage, "train"):  # it is past it
                continue
            taken = [other.seconds[stage] for other in over if set(other.pairs) & set(task.pairs)]
            seconds = statistics.fmean(taken) if taken else _planned_seconds(queue, task, stage, elapsed)
            if seconds is None:
                return None
            here = elapsed.get(task.name, 0.0) if stage == task.stage else 0.0
            left += max(0.0, seconds - task.seconds.get(stage, 0.0) - here)
    return left


def _planned_seconds(queue: Queue, task: Task, stage: Stage, elapsed: dict[str, float]) -> float | None:
    found = queue.forecasts.get(task.pair, {})
    if stage == "evaluate":
        return next((made.evaluation_seconds for made in found.values() if made and made.evaluation_seconds), None)
    made, count = found.get(task.kind), queue.pairs[task.pair].steps
    if made and made.step_seconds:
        return count * made.step_seconds
    likely = []
    for one in queue.in_state(RUNNING):
        if one.role == "run" and one.pair == task.pair and (steps := read_steps(queue, one)):
            loading = max(0.0, one.seconds.get(stage, 0.0) + elapsed.get(one.name, 0.0) - sum(steps.seconds))
            likely.append(loading + count * statistics.median(steps.seconds))
    return statistics.fmean(likely) if likely else None
