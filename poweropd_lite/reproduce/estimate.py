"""How long a queue takes: from plan where it knows the card, then from the first steps, then from what is done.

Plan is asked in a process of its own, so that the queue itself never imports torch and holds no memory of a card.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.progress import clock
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.reproduce import child
from poweropd_lite.reproduce.grid import Task, read_task
from poweropd_lite.reproduce.results import Steps, read_steps
from poweropd_lite.reproduce.state import DONE, FAILED, Queue

GIB = 2**30
START = 10.0  # seconds until a process has loaded its models; only until a run was measured
FIRST_STEPS = 3  # of a run, before they are believed
POLL = 0.2  # seconds between looks at whether to stop


def plan_key(task: Task) -> str:
    """Returns what plan's answers are kept under: the full vocabulary takes another memory and time than sampled tokens."""
    return f"{task.pair} {'full_kl' if task.reward == 'full_kl' else 'sampled'}"


def ask_plan(
    queue: Queue,
    task: Task,
    config: Path,
    gpu: str | None,
    scoring: bool,
    say: Callable[[str], None],
    stop: StopRequest,
) -> dict[str, Any]:
    """Returns what the plan command says of a task's pair and kind of reward, whose settings are in the file `config`, on this
    machine or the card `gpu`; nothing once a stop is asked for.

    Where plan knows the card and `scoring` is asked for, `evaluation_seconds` is added. Raises UserError where it finds the models unreadable.
    """
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in task.settings().items()]
    flags += [f"--gpu={gpu}"] if gpu else []
    found = _plan([f"--config={config}", *flags], task, say, stop)
    if found.get("seconds") and scoring:
        how = queue.scoring
        names = how["benchmarks"] or (BUNDLED if queue.pairs[task.pair]["student"] == BUNDLED else "all")
        flags += [f"--eval-benchmarks={names}", f"--eval-samples={how['n']}"]
        flags += [f"--eval-problems={how['problems'] or 10**6}"]
        flags += [f"--eval-max-new-tokens={how['answer_tokens']}"] if how["answer_tokens"] else []
        more = _plan([f"--config={config}", *flags], task, say, stop)
        if more.get("seconds"):  # it counts a greedy answer beside the n samples
            share = how["n"] / (how["n"] + 1)
            found["evaluation_seconds"] = share * more["seconds"]["evaluation"]
    return found


def _plan(flags: list[str], task: Task, say: Callable[[str], None], stop: StopRequest) -> dict[str, Any]:
    if stop:
        return {}
    command = [sys.executable, "-I", child.__file__, str(os.getpid()), "poweropd_lite.plan", *flags, "--json"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as the runs: a terminal's Ctrl-C reaches the queue alone
    )
    while True:
        try:
            out, err = process.communicate(timeout=POLL)
            break
        except subprocess.TimeoutExpired:
            if stop:
                process.kill()  # it has nothing to save
    if stop:
        return {}
    if process.returncode in (0, 1):
        try:
            return json.loads(out)
        except ValueError:
            pass
    said = err.strip().rpartition("error: ")[2] or f"code {process.returncode}"
    if process.returncode == 2 and "can't be planned" not in said:
        raise UserError(f"{task.pair}: {said}")
    say(f"{task.pair}: not planned ({' '.join(said.split())[:300]}); it is run without a plan")
    return {}


def check_fit(task: Task, found: dict[str, Any], jobs: int) -> None:
    """Raises UserError for a pair that does not fit the machine, or not so many times side by side."""
    if not found or found.get("usable_bytes") is None:
        return
    needed, usable = found["needed_bytes"] / GIB, found["usable_bytes"] / GIB
    if found["fits"] is False:
        changes = {k: v[1] for k, v in (found.get("changes") or {}).items()}
        flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in changes.items())
        hint = f"it does with {flags}" if flags else "no setting makes it fit"
        raise UserError(
            f"{task.pair} ({task.reward}) does not fit {found['machine']}: it needs {needed:.1f} GiB, and {usable:.1f} can be used; "
            f"{hint} (python -m poweropd_lite.plan --config {task.pair} --reward {task.reward} says more), or leave it out of --pairs"
        )
    if jobs > 1 and jobs * needed > usable:
        raise UserError(
            f"{jobs} runs of {task.pair} side by side need {jobs * needed:.1f} GiB by plan, and {found['machine']} has {usable:.1f}; "
            f"type --jobs {max(1, int(usable / needed))}"
        )


@dataclass(frozen=True)
class Left:
    """What is left to do, in seconds of one run after another; None: nothing tells yet."""

    training: float | None
    scoring: float | None
    source: str  # from plan, from the first steps, from what is done

    @property
    def total(self) -> float | None:
        """Both."""
        return None if self.training is None or self.scoring is None else self.training + self.scoring


class Pace:
    """Estimates what is left of a queue from whatever is known best."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.steps: dict[str, Steps] = {}

    def look(self, running: list[Task]) -> None:
        """Reads how far the running runs are."""
        for task in running:
            if task.role == "run":
                self.steps[task.name] = read_steps(self.queue.out, task)

    def left(self, share_done: dict[str, float]) -> Left:
        """Returns what is left; `share_done` has by name the share of the stage that a running task is at."""
        training = scoring = 0.0
        for task in self.queue.tasks():
            record = self.queue.runs[task.name]
            if record["state"] in (DONE, FAILED):
                continue
            rest = 1 - share_done.get(task.name, 0.0)
            if record["stage"] == "train" and training is not None:
                one = self.train_seconds(task)
                training = None if one is None else training + one * rest
            if scoring is not None:
                one = self.score_seconds(task)
                scoring = None if one is None else scoring + one * (rest if record["stage"] == "evaluate" else 1)
        return Left(training, scoring, self._source())

    def _source(self) -> str:
        runs = [record for record in self.queue.runs.values() if record["role"] == "run"]
        if any(record["state"] == DONE or record["stage"] == "evaluate" for record in runs):
            return "from what is done"
        if any(len(s.seconds) >= FIRST_STEPS for s in self.steps.values()):
            return "from the first steps"
        return "from plan"

    def train_seconds(self, task: Task) -> float | None:
        """Returns the estimated seconds of a whole training run."""
        total = self.queue.steps(task)
        if (measured := self._measured(task, "train")) is not None:
            return measured
        ours, theirs = self._tflops(task.pair, plan_key(task)), None
        for name, steps in self.steps.items():
            other = read_task(self.queue.runs[name])
            if len(steps.seconds) >= FIRST_STEPS:
                seconds = START + total * statistics.median(steps.seconds[1:])
                if other.pair == task.pair:
                    return seconds
                work = self._tflops(other.pair, plan_key(other))
                theirs = seconds * ours / work if ours and work else theirs
        if theirs is not None:  # another pair's steps, by the operations of both
            return theirs
        found = self.queue.plans.get(plan_key(task)) or {}
        return START + total * sum(found["seconds"]["step"].values()) if found.get("seconds") else None

    def score_seconds(self, task: Task) -> float | None:
        """Returns the estimated seconds of an evaluation."""
        if (measured := self._measured(task, "evaluate")) is not None:
            return measured
        for name, steps in self.steps.items():
            if steps.tokens_per_second and len(steps.seconds) >= FIRST_STEPS:
                other = read_task(self.queue.runs[name])
                scale = 1.0
                if other.pair != task.pair:
                    ours, theirs = self._tflops(task.pair, plan_key(task)), self._tflops(other.pair, plan_key(other))
                    scale = ours / theirs if ours and theirs else 1.0
                return START + scale * self.answers(task) * steps.length / steps.tokens_per_second
        for key, found in self.queue.plans.items():
            if key.rpartition(" ")[0] == task.pair and found.get("evaluation_seconds"):
                return START + found["evaluation_seconds"]
        return None

    def answers(self, task: Task) -> int:
        """Returns how many answers an evaluation samples; a set of unknown size counts as 256 problems."""
        from poweropd_lite.problems.benchmarks import find_benchmarks

        scoring = self.queue.scoring
        names = scoring["benchmarks"] or (BUNDLED if self.queue.pairs[task.pair]["student"] == BUNDLED else "all")
        sizes = [max(b.sizes) if b.sizes else 256 for b in find_benchmarks(names, scoring["benchmark_folder"])]
        return scoring["n"] * sum(min(size, scoring["problems"] or size) for size in sizes)

    def _measured(self, task: Task, stage: str) -> float | None:
        """The mean seconds of a stage over the finished runs most like this one."""
        done = [
            (read, record["seconds"][stage])
            for record in self.queue.runs.values()
            if record["seconds"].get(stage)
            and (record["state"] == DONE or (stage == "train" and record["stage"] == "evaluate"))
            for read in [read_task(record)]
        ]
        full = task.reward == "full_kl"
        likes: tuple[Callable[[Task], bool], ...] = (
            lambda t: (t.pair, t.role, t.reward) == (task.pair, task.role, task.reward),
            lambda t: t.pair == task.pair and t.role == task.role == "run" and (t.reward == "full_kl") == full,
            lambda t: t.pair == task.pair and (stage == "evaluate" or t.role == task.role),
        )
        for like in likes:
            found = [seconds for read, seconds in done if like(read)]
            if found:
                return statistics.fmean(found)
        return None

    def _tflops(self, pair: str, key: str) -> float | None:
        found = self.queue.plans.get(key) or next(
            (p for k, p in self.queue.plans.items() if k.rpartition(" ")[0] == pair), {}
        )
        return sum(found["tflops"].values()) if found.get("tflops") else None


def words(left: Left, jobs: int, unknown: str) -> str:
    """Returns an estimate in a sentence."""
    if left.total is None:
        known = (
            f"training {clock(left.training / jobs)}, {unknown} for the rest" if left.training is not None else unknown
        )
        return f"estimate: {known}"
    parts = f"training {clock(left.training / jobs)}, evaluation {clock(left.scoring / jobs)}"
    return f"estimate {left.source}: about {clock(left.total / jobs)} for what is left ({parts}{f', {jobs} side by side' if jobs > 1 else ''})"
