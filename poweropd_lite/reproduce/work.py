"""The queue at work: a process for every stage of every task, some side by side, until all are done or a signal comes.

A process holds an inherited lock as long as it lives, so that one which a killed queue left behind is seen and waited
for. A run that fails is kept and does not stop the others.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poweropd_lite.base.config import BUNDLED, Config, load_config, marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import try_lock
from poweropd_lite.base.progress import clock
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.reproduce import child, grid
from poweropd_lite.reproduce.forecast import POLL, seconds_left
from poweropd_lite.reproduce.grid import DONE, FAILED, RUNNING, WAITING, Task, as_flags, in_order
from poweropd_lite.reproduce.state import Queue, is_trained, json_or_none, read_scores

NOTICE = "stopping: each run finishes its step or batch and saves (once more to stop at once)"
OF_ADAPTER = ("lora_rank", "lora_alpha", "lora_targets", "modules_to_save")  # which a run with an adapter has from it
PATIENCE = 10  # seconds for a process that is to end at once


@dataclass
class Job:
    task: Task
    process: subprocess.Popen
    started: float  # by time.monotonic


class Workers:
    """The processes of a queue, at most `limit` at a time."""

    def __init__(self, queue: Queue, limit: int, say: Callable[[str], None]) -> None:
        self.queue, self.limit, self.say = queue, limit, say
        self.jobs: list[Job] = []
        self.waited_for: set[str] = set()  # tasks of which it was said that an earlier process is at them

    def work(self) -> int:
        """Runs what is waiting; says what begins and what ends. Returns the signal that stopped it, or 0.

        A second signal ends the processes at once and raises KeyboardInterrupt.
        """
        told = False
        with StopRequest(NOTICE) as stop:
            try:
                while True:
                    if stop and not told:  # one each, on which they save and end
                        told = True
                        for job in self.jobs:
                            job.process.send_signal(stop.signal)
                    for job in [job for job in self.jobs if job.process.poll() is not None]:
                        self.jobs.remove(job)
                        self._end(job, bool(stop))
                    if not stop:
                        self._fill()
                    if not self.jobs and (stop or not self.queue.in_state(WAITING)):
                        return stop.signal
                    time.sleep(POLL)
            except BaseException:  # a second signal, or a fault of our own: nothing goes on unseen
                for job in self.jobs:
                    job.process.terminate()  # the second one, where a first was passed on
                for job in self.jobs:
                    try:
                        job.process.wait(PATIENCE)
                    except subprocess.TimeoutExpired:
                        job.process.kill()
                        job.process.wait()
                raise

    def _fill(self) -> None:
        for task in in_order(self.queue.tasks.values()):
            if len(self.jobs) >= self.limit:
                return
            if task.state == WAITING:
                try:
                    self._start(task)
                except UserError as error:
                    task.state, task.message = FAILED, str(error)
                    self._ended(task)

    def _start(self, task: Task) -> None:
        """Starts a task's stage, unless a process that a killed queue left behind is still at it."""
        lock = try_lock(self._hidden(task, "lock"), "--output")
        if lock is None:
            if task.name not in self.waited_for:
                self.waited_for.add(task.name)
                self.say(f"{task.name}: a process of an earlier start is still at it; waiting until it has saved")
            return
        try:
            command = next_command(self.queue, task)
            with open(self.queue.out / task.log, "a", encoding="utf-8") as log:
                log.write(f"$ python -m {' '.join(command)}\n")
                log.flush()
                how = {"stdout": log, "stderr": subprocess.STDOUT, "pass_fds": [lock]}
                self.jobs.append(Job(task, child.start(command, self._hidden(task, "json"), **how), time.monotonic()))
        finally:
            os.close(lock)  # the child's copy holds it
        for job in self.jobs:
            if job.task.stage == "train":
                job.task.side_by_side = max(job.task.side_by_side, len(self.jobs))
        task.state = RUNNING
        self.queue.save()
        self.say(f"{task.name}: {'training' if task.stage == 'train' else 'evaluating'}")

    def _hidden(self, task: Task, suffix: str) -> Path:
        return self.queue.out / "logs" / f".{task.name}.{suffix}"

    def _end(self, job: Job, stopped: bool) -> None:
        task, code = job.task, job.process.returncode
        task.seconds[task.stage] = round(task.seconds.get(task.stage, 0.0) + time.monotonic() - job.started, 1)
        left_all = is_trained(self.queue, task) if task.stage == "train" else read_scores(self.queue, task)
        if code == 0 and left_all:
            task.state = WAITING if task.stage == "train" else DONE
            task.stage, task.message = "evaluate", None
        elif code != 0 and stopped:
            task.state = WAITING
        else:
            task.state, task.message = FAILED, f"{task.stage} {self._why(task, code)}"
        self._ended(task)

    def _why(self, task: Task, code: int) -> str:
        if code == 0:
            return f"left no finished {'summary' if task.stage == 'train' else 'results'}.json"
        if code < 0:
            name = signal.Signals(-code).name
            more = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return f"was ended by {name}{more}; --retry-failed goes on from what it saved"
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return f"was stopped by {signal.Signals(code - 128).name} from elsewhere; --retry-failed goes on"
        summary = (
            json_or_none(self.queue.run_folder(task) / "summary.json") if code == 1 and task.stage == "train" else None
        )
        said = (json_or_none(self._hidden(task, "json")) or {}).get("message") or (summary or {}).get("gave_up")
        message = said or "its log may say why"
        return f"ended with code {code}: {' '.join(message.split()).replace(f'{self.queue.out}/', '')[:600]}"

    def _ended(self, task: Task) -> None:
        self.queue.save()
        if task.state == FAILED:
            self.say(f"{task.name}: failed, and the queue goes on: {task.message} ({task.log})")
        elif task.state == DONE and (scores := read_scores(self.queue, task)):
            row = list(scores.benchmarks.values())[-1]
            count = f"{len(self.queue.in_state(DONE))} of {len(self.queue.tasks)} done"
            left = seconds_left(self.queue, {job.task.name: time.monotonic() - job.started for job in self.jobs})
            found = f"Avg@{scores.n} {row['avg']:.1f}%, {row['length']:.0f} tokens"
            eta = f"; ETA {clock(left / self.limit)}" if left else ""
            self.say(f"{task.name}: {found} ({clock(sum(task.seconds.values()))})   {count}{eta}")


def next_command(queue: Queue, task: Task) -> list[str]:
    """Returns the module and flags of a task's stage, having set it to the next one where the run is trained already.

    Raises UserError for a run folder that is another run's.
    """
    pair, folder = queue.pairs[task.pair], queue.run_folder(task)
    if task.stage == "train":
        begun = (folder / "config.yaml").is_file()
        if begun:
            check_same_run(folder, grid.run_config(pair, task))
        if not is_trained(queue, task):
            config = ["--config", str(queue.out / "pairs" / f"{task.pair}.yaml"), *as_flags(task.settings())]
            return ["poweropd_lite.train", *(["--resume"] if begun else [*config, "--output"]), str(folder)]
        task.stage = "evaluate"
    values = queue.scoring
    if values["benchmarks"] is None and (pair.student == BUNDLED or pair.evaluates or Path(pair.data).exists()):
        values = values | {"benchmarks": grid.everything(pair)}
    scoring = as_flags({"max_new_tokens" if k == "answer_tokens" else k: v for k, v in values.items()})
    run = ["--model", str(folder), *grid.machine_flags(pair, pair.dtype)]
    model = run if task.role == "run" else grid.model_flags(pair, task.role)
    return ["poweropd_lite.evaluate", *model, *scoring, "--output", str(queue.scores_folder(task))]


def check_same_run(folder: Path, here: Config) -> None:
    """Raises UserError for a run folder whose settings are not those of `here`."""
    there = load_config(folder / "config.yaml")
    own = {*marked("found"), *(OF_ADAPTER if here.adapter else ())}
    if names := [n for n in Config.model_fields if n not in own and getattr(there, n) != getattr(here, n)]:
        differing = "; ".join(f"{n} {getattr(there, n)} there, {getattr(here, n)} here" for n in names)
        raise UserError(f"{folder} holds another run ({differing}); move it away, and type --retry-failed")
