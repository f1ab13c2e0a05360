"""The reproduce command from Python: what is asked for, the estimate, the work, and the tables.

from poweropd_lite.reproduce import reproduce
done = reproduce(preset="smoke", out="smoke", lr=4e-3)
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.progress import clock
from poweropd_lite.base.stop import StopRequest, end_cell
from poweropd_lite.reproduce import estimate
from poweropd_lite.reproduce.files import write_tables
from poweropd_lite.reproduce.grid import Task, in_order, scores_folder
from poweropd_lite.reproduce.results import count_samples, read_scores
from poweropd_lite.reproduce.settings import ReproduceConfig, split_settings
from poweropd_lite.reproduce.settle import set_right, settle
from poweropd_lite.reproduce.state import DONE, FAILED, WAITING, Queue, is_locked, locked, read_queue, write_pairs
from poweropd_lite.reproduce.work import Workers


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` returns: the folder, every run's state by name, and the signal that stopped it (or 0)."""

    folder: Path
    states: dict[str, str]
    signal: int = 0

    @property
    def failed(self) -> list[str]:
        """The names of the runs that failed."""
        return [name for name, state in self.states.items() if state == FAILED]


def reproduce(say: Callable[[str], None] = print, **settings: Any) -> Reproduced:
    """Trains and scores a grid of runs, or goes on with it, and writes its tables.

    Takes the settings of ReproduceConfig and, but for what the grid sets, of training's Config. Raises UserError for what the
    user can mend; runs that fail are kept, and said.
    """
    asked, training, given = split_settings(settings)
    out = Path(asked.out or f"reproductions/{asked.preset or 'custom'}")
    there = read_queue(out)
    if asked.tables_only:
        if there is None:
            raise UserError(f"{out} holds no queue yet; type --out with a folder that a queue was run in")
        return _finish(there, 0, say)
    queue, _ = settle(asked, training, given, there, out)
    if is_locked(out):
        raise UserError(f"another process is working on the queue in {out}; wait for it, or type another --out")
    with StopRequest("stopping: nothing was begun") as stop:
        planned = _planned(queue, asked, say, stop)
    if stop:
        end_cell(stop.signal)
        return Reproduced(out, {name: r["state"] for name, r in queue.runs.items()}, stop.signal)
    if asked.dry_run:
        queue.plans |= planned
        say(_size(queue, queue.out))
        say(_estimate(queue, asked.jobs))
        return Reproduced(out, {name: r["state"] for name, r in queue.runs.items()})
    with locked(out):
        queue, added = settle(asked, training, given, read_queue(out) if there else None, out)
        queue.plans |= planned
        for line in set_right(queue, asked.retry_failed):
            say(line)
        write_pairs(out / "pairs", queue.pairs)
        (out / "runs").mkdir(exist_ok=True)
        queue.save()
        say(_size(queue, out) + (f" ({added} new)" if there and added else ""))
        stopped = 0
        if queue.tasks(WAITING):
            say(_estimate(queue, asked.jobs))
            workers = Workers(queue, asked.jobs, say)
            reporter = Reporter(queue, workers, say)
            stopped = workers.work(reporter.tick, reporter.ended)
        done = _finish(queue, stopped, say)
    end_cell(stopped)
    return done


def _planned(
    queue: Queue, asked: ReproduceConfig, say: Callable[[str], None], stop: StopRequest
) -> dict[str, dict[str, Any]]:
    """Asks plan about every pair and kind of reward that it was not asked about yet; raises UserError where one does not fit."""
    wanted: dict[str, Task] = {}
    for task in in_order(queue.tasks()):
        if task.role == "run" and queue.runs[task.name]["state"] != DONE:
            wanted.setdefault(estimate.plan_key(task), task)
    missing = [key for key in wanted if asked.gpu or key not in queue.plans]
    if missing:
        say(f"planning {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        write_pairs(Path(folder), queue.pairs)

        once = {wanted[key].pair: key for key in reversed(wanted)}  # an evaluation takes as long whatever the reward

        def ask(key: str) -> dict[str, Any]:
            task = wanted[key]
            config, scoring = Path(folder) / f"{task.pair}.yaml", once[task.pair] == key
            return estimate.ask_plan(queue, task, config, asked.gpu, scoring, say, stop)

        found = {**queue.plans, **dict(zip(missing, pool.map(ask, missing), strict=True))}
    if not stop:
        for key, task in wanted.items():
            estimate.check_fit(task, found[key], asked.jobs)
    return found


def _size(queue: Queue, out: Path) -> str:
    runs = [task for task in queue.tasks() if task.role == "run"]
    models = len(queue.runs) - len(runs)
    counts = {state: len(queue.tasks(state)) for state in (DONE, FAILED)}
    text = f"{len(runs)} runs to train and score, {models} models to score, in {out}"
    text += "".join(f"; {count} {state}" for state, count in counts.items() if count)
    return text + ("; --retry-failed tries those that failed again" if counts[FAILED] else "")


def _estimate(queue: Queue, jobs: int) -> str:
    return estimate.words(
        estimate.Pace(queue).left({}), jobs, "plan knows no time for this machine; the first steps will tell"
    )


class Reporter:
    """What is said while the queue works: a line for every run that ends, one now and then, and the estimate from the first steps."""

    def __init__(self, queue: Queue, workers: Workers, say: Callable[[str], None]) -> None:
        self.queue, self.workers, self.say = queue, workers, say
        self.pace = estimate.Pace(queue)
        self.looked = self.said = time.monotonic()
        self.every = 15.0  # seconds between lines; longer where there is long to go
        self.first = any(r["state"] == DONE and r["role"] == "run" for r in queue.runs.values())  # said, or needless

    def tick(self) -> None:
        """Called at every look at the children."""
        now = time.monotonic()
        if now - self.looked < 2:
            return
        self.looked = now
        if not self.first:
            self.pace.look([r.task for r in self.workers.running])
            left = self.pace.left(self._shares())
            self.first = left.source == "from what is done"
            if left.source == "from the first steps" and left.total is not None:
                self.first, self.said = True, now
                self.say(estimate.words(left, self.workers.jobs, ""))
        if now - self.said > self.every:
            self.said = now
            self.pace.look([r.task for r in self.workers.running])
            left = self.pace.left(self._shares()).total
            self.every = min(600, max(15, (left or 0) / 100))
            at = ", ".join(self._at(r.task, r.stage) for r in self.workers.running) or "waiting"
            self.say(f"{self._count()}; {at}{self._eta(left)}")

    def ended(self, task: Task) -> None:
        """Called when a run is done or has failed."""
        record = self.queue.runs[task.name]
        self.said = time.monotonic()
        if record["state"] == FAILED:
            self.say(f"{task.name}: failed, and the queue goes on: {record['message']} ({record['log']})")
            return
        scores = read_scores(self.queue.out, task, self.queue.steps(task))
        row = list(scores.benchmarks.values())[-1] if scores else {}
        found = f"Avg@{scores.n} {row['avg']:.1f}%, {row['length']:.0f} tokens" if scores else "done"
        spent = sum(record["seconds"].values())
        self.pace.look([r.task for r in self.workers.running])
        eta = self._eta(self.pace.left(self._shares()).total)
        self.say(f"{task.name}: {found} ({clock(spent)})   {self._count()}{eta}")

    def _count(self) -> str:
        failed = len(self.queue.tasks(FAILED))
        return f"{len(self.queue.tasks(DONE))} of {len(self.queue.runs)} done" + (
            f", {failed} failed" if failed else ""
        )

    def _eta(self, left: float | None) -> str:
        return "" if not left else f"; ETA {clock(left / self.workers.jobs)}"

    def _shares(self) -> dict[str, float]:
        return {
            r.task.name: min(1.0, done / total)
            for r in self.workers.running
            for done, total in [self._done(r.task, r.stage)]
        }

    def _done(self, task: Task, stage: str) -> tuple[int, int]:
        steps = self.queue.steps(task)
        if stage == "train":
            return len(self.pace.steps[task.name].seconds) if task.name in self.pace.steps else 0, steps
        return count_samples(scores_folder(self.queue.out, task, steps)), max(1, self.pace.answers(task))

    def _at(self, task: Task, stage: str) -> str:
        done, total = self._done(task, stage)
        return f"{task.name} {'step' if stage == 'train' else 'answer'} {done:,}/{total:,}"


def _finish(queue: Queue, stopped: int, say: Callable[[str], None]) -> Reproduced:
    """Writes the tables and says what came out."""
    files = write_tables(queue)
    failed, waiting = (
        queue.tasks(FAILED),
        [t for t in queue.tasks() if queue.runs[t.name]["state"] not in (DONE, FAILED)],
    )
    say(f"{len(queue.tasks(DONE))} of {len(queue.runs)} done")
    for task in failed:
        record = queue.runs[task.name]
        say(f"failed: {task.name}: {record['message']} ({queue.out / record['log']})")
    if failed:
        say("--retry-failed tries them once more")
    if waiting:
        say(f"{len(waiting)} not run to the end: python -m poweropd_lite.reproduce --out {queue.out} goes on")
    say(f"files   {queue.out}: {'  '.join(files)}")
    return Reproduced(queue.out, {name: record["state"] for name, record in queue.runs.items()}, stopped)
