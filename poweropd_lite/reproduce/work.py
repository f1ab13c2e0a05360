"""The queue at work: a child process for every stage of every run, some side by side, until all are done or a signal comes.

A child holds an inherited lock as long as it lives, so that one which a killed queue left behind is seen and waited for. A run
that fails is kept and does not stop the others.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from poweropd_lite.base.config import Config, load_config, marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.reproduce import child, results
from poweropd_lite.reproduce.grid import Task, evaluate_command, in_order, run_folder, scores_folder, train_command
from poweropd_lite.reproduce.state import DONE, FAILED, RUNNING, WAITING, Queue, is_locked, try_lock

NOTICE = "stopping: each run finishes its step or batch and saves (once more to stop at once)"
POLL = 0.2  # seconds between looks at the children


@dataclass
class Running:
    """A stage of a run that a child process is at."""

    task: Task
    stage: str
    process: subprocess.Popen
    log: Path
    begin: int  # where this sitting's part of the log starts
    started: float = field(default_factory=time.monotonic)
    told: bool = False  # whether a signal was passed on to it
    beside: int = 1  # the most runs at once while it lived


class Workers:
    """The children of a queue, at most `jobs` at a time."""

    def __init__(self, queue: Queue, jobs: int, say: Callable[[str], None]) -> None:
        self.queue, self.jobs, self.say = queue, jobs, say
        self.running: list[Running] = []
        self.seen: set[str] = set()  # tasks whose old process was spoken of

    def work(self, tick: Callable[[], None], ended: Callable[[Task], None]) -> int:
        """Runs what is waiting; calls `tick` at every look, and `ended` when a task is done or has failed.

        Returns the signal that stopped it, or 0. A second signal ends the children at once and raises KeyboardInterrupt.
        """
        with StopRequest(NOTICE) as stop:
            try:
                while True:
                    if stop:
                        self._pass_on(stop.signal)
                    for running in [r for r in self.running if r.process.poll() is not None]:
                        self.running.remove(running)
                        self._end(running, stop, ended)
                    if not stop:
                        self._fill(ended)
                    for running in self.running:
                        running.beside = max(running.beside, len(self.running))
                    if not self.running and (stop or not self.queue.tasks(WAITING)):
                        return stop.signal
                    tick()
                    time.sleep(POLL)
            except BaseException:  # a second signal, or a fault of our own: nothing goes on unseen
                self._end_at_once()
                raise

    def _fill(self, ended: Callable[[Task], None]) -> None:
        if len(self.running) >= self.jobs:
            return
        busy = {r.task.name for r in self.running}
        for task in in_order(self.queue.tasks()):
            waits = self.queue.runs[task.name]["state"] == WAITING and task.name not in busy
            if waits and not self._held(task):
                self._start(task, ended)
            if len(self.running) >= self.jobs:
                return

    def _held(self, task: Task) -> bool:
        """Whether a process that is not ours works on a task's folder: most likely the child of a queue that was killed."""
        lock = try_lock(self._lock_file(task))
        if lock is not None:
            os.close(lock)
        folders = [scores_folder(self.queue.out, task, self.queue.steps(task))]
        folders += [run_folder(self.queue.out, task)] if task.role == "run" else []
        if lock is not None and not any(map(is_locked, folders)):
            return False
        if task.name not in self.seen:
            self.seen.add(task.name)
            self.say(f"{task.name}: a process of an earlier start is still at it; waiting until it has saved")
        return True

    def _lock_file(self, task: Task) -> Path:
        return self.queue.out / "logs" / f".{task.name}.lock"

    def _start(self, task: Task, ended: Callable[[Task], None]) -> None:
        """Starts the next stage of a task; one that can't be started has failed."""
        queue, record = self.queue, self.queue.runs[task.name]
        try:
            command = self._command(task)
        except UserError as error:
            record |= {"state": FAILED, "message": str(error)}
            queue.save()
            ended(task)
            return
        log = queue.out / record["log"]
        lock = try_lock(self._lock_file(task))
        if lock is None:  # between two looks; the next one sees it
            return
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ python -m {' '.join(command)}\n")
            file.flush()
            begin = file.tell()
            process = subprocess.Popen(
                [sys.executable, "-I", child.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the queue alone, which passes on one
                pass_fds=[lock],
            )
        os.close(lock)  # the child's copy holds it
        self.running.append(Running(task, record["stage"], process, log, begin))
        record["state"] = RUNNING
        queue.save()
        self.say(f"{task.name}: {'training' if record['stage'] == 'train' else 'evaluating'}")

    def _command(self, task: Task) -> list[str]:
        """Returns the command of a task's next stage; raises UserError for a run folder that is another run's."""
        queue, record = self.queue, self.queue.runs[task.name]
        if record["stage"] == "train":
            found = run_folder(queue.out, task) / "config.yaml"
            if found.is_file():
                self._check(found, task)
            if not results.trained(queue.out, task, queue.steps(task)):
                return train_command(queue.out, task, found.is_file())
            record["stage"] = "evaluate"
        return evaluate_command(queue.out, task, queue.pairs[task.pair], queue.scoring)

    def _check(self, file: Path, task: Task) -> None:
        there = load_config(file)
        wanted = load_config(**self.queue.pairs[task.pair], **task.settings())
        names = [n for n in Config.model_fields if n not in marked("found") and getattr(there, n) != getattr(wanted, n)]
        if names:
            differing = "; ".join(f"{n} {getattr(there, n)} there, {getattr(wanted, n)} here" for n in names)
            raise UserError(f"{file.parent} holds another run ({differing}); move it away, and type --retry-failed")

    def _end(self, running: Running, stop: StopRequest, ended: Callable[[Task], None]) -> None:
        """Writes down how a child ended."""
        task, code = running.task, running.process.returncode
        record = self.queue.runs[task.name]
        spent = record["seconds"].get(running.stage, 0.0) + time.monotonic() - running.started
        record["seconds"][running.stage] = round(spent, 1)
        if running.stage == "train":
            record["side_by_side"] = max(running.beside, record.get("side_by_side", 1))
        missing = None if code else self._missing(task, running.stage)
        if code == 0 and missing is None:
            last = running.stage == "evaluate"
            record |= {"state": DONE if last else WAITING, "stage": "evaluate", "message": None}
        elif stop:
            record["state"] = WAITING
        else:
            record |= {"state": FAILED, "message": missing or self._why(running, code)}
        self.queue.save()
        if record["state"] in (DONE, FAILED):
            ended(task)

    def _missing(self, task: Task, stage: str) -> str | None:
        """What a command that ended well did not leave behind."""
        if stage == "train":
            return (
                None
                if results.trained(self.queue.out, task, self.queue.steps(task))
                else "it left no finished summary.json"
            )
        return None if results.scored(self.queue.out, task, self.queue.steps(task)) else "it left no results.json"

    def _why(self, running: Running, code: int) -> str:
        """The last words of a child that failed, without this folder's own name."""
        if code < 0:
            name = signal.Signals(-code).name
            more = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return f"{running.stage} was ended by {name}{more}; --retry-failed goes on from what it saved"
        with open(running.log, encoding="utf-8", errors="replace") as file:
            file.seek(running.begin)
            lines = [line.rstrip() for line in file.read().splitlines() if line.strip()]
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return f"{running.stage} was stopped by {signal.Signals(code - 128).name} from elsewhere; --retry-failed goes on"
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        said = (
            " ".join(lines[starts[-1] :]).removeprefix("error: ") if starts else lines[-1] if lines else "nothing said"
        )
        said = said.replace(f"{self.queue.out}/", "")
        return f"{running.stage} ended with code {code}: {said[:600]}"

    def _pass_on(self, number: int) -> None:
        """Sends the signal once to each child, which then saves and ends."""
        for running in self.running:
            if not running.told:
                running.told = True
                running.process.send_signal(number)

    def _end_at_once(self) -> None:
        for running in self.running:
            running.process.send_signal(signal.SIGTERM)  # the second one, where a first was passed on
        limit = time.monotonic() + 10
        for running in self.running:
            try:
                running.process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            self.queue.runs[running.task.name]["state"] = WAITING
        self.running = []
        self.queue.save()
