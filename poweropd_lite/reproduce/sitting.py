"""One sitting of a queue: what is asked for, whether it fits, the work, and the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.progress import clock
from poweropd_lite.base.stop import StopRequest, end_cell
from poweropd_lite.reproduce.forecast import make_forecasts, seconds_left
from poweropd_lite.reproduce.grid import DONE, FAILED, RUNNING, WAITING, State
from poweropd_lite.reproduce.settings import split_settings
from poweropd_lite.reproduce.settle import set_right, settle
from poweropd_lite.reproduce.state import Queue, in_use, is_locked, locked, read_queue, write_pairs
from poweropd_lite.reproduce.tables import write_tables
from poweropd_lite.reproduce.work import Workers


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` returns: the folder, every task's state by name, and the signal that stopped it (or 0)."""

    folder: Path
    states: dict[str, State]
    signal: int = 0

    @property
    def failed(self) -> list[str]:
        """The names of the tasks that failed."""
        return [name for name, state in self.states.items() if state == FAILED]


def reproduce(say: Callable[[str], None], settings: dict[str, Any]) -> Reproduced:
    """See `poweropd_lite.reproduce.reproduce`."""
    config, training, given = split_settings(settings)
    out = Path(config.out or f"reproductions/{config.preset or 'custom'}")
    there = read_queue(out)
    if config.tables_only:
        if there is None:
            raise UserError(f"{out} holds no queue yet; type --out with a folder that a queue was run in")
        return _finish(there, 0, say)
    asked, _ = settle(config, training, given, there, out)
    if is_locked(out):
        raise in_use(out)
    with StopRequest("stopping: nothing was begun") as stop:
        make_forecasts(asked, config.gpu, config.jobs, say, stop)
    if stop or config.dry_run:
        if not stop:
            _say_size(asked, 0, config.jobs, say)
        end_cell(stop.signal)
        return _result(asked, stop.signal)
    with locked(out):  # read once more, for another process may have come between
        queue, added = settle(config, training, given, read_queue(out) if (out / "queue.json").exists() else None, out)
        queue.forecasts = asked.forecasts
        for line in set_right(queue, config.retry_failed):
            say(line)
        write_pairs(out / "pairs", queue.pairs)
        (out / "runs").mkdir(exist_ok=True)
        queue.save()
        _say_size(queue, added if there else 0, config.jobs, say)
        done = _finish(queue, Workers(queue, config.jobs, say).work(), say)
    end_cell(done.signal)
    return done


def _result(queue: Queue, stopped: int) -> Reproduced:
    return Reproduced(queue.out, {name: task.state for name, task in queue.tasks.items()}, stopped)


def _say_size(queue: Queue, added: int, jobs: int, say: Callable[[str], None]) -> None:
    runs = sum(task.role == "run" for task in queue.tasks.values())
    text = f"{runs} runs to train and score, {len(queue.tasks) - runs} models to score, in {queue.out}"
    done, failed = len(queue.in_state(DONE)), len(queue.in_state(FAILED))
    text += f"; {done} done" * bool(done) + f"; {failed} failed (--retry-failed tries them again)" * bool(failed)
    say(text + f" ({added} new)" * bool(added))
    left = seconds_left(queue, {})
    if left is None:
        say("no estimate: plan knows no time for this machine; the first that is done will tell")
    elif left:
        say(f"estimate: about {clock(left / jobs)} for what is left" + f", {jobs} side by side" * (jobs > 1))


def _finish(queue: Queue, stopped: int, say: Callable[[str], None]) -> Reproduced:
    """Writes the tables and says what came out."""
    files = write_tables(queue)
    say(f"{len(queue.in_state(DONE))} of {len(queue.tasks)} done")
    for task in queue.in_state(FAILED):
        say(f"failed: {task.name}: {task.message} ({queue.out / task.log}); --retry-failed tries it again")
    if waiting := queue.in_state(WAITING, RUNNING):
        say(f"{len(waiting)} not run to the end: python -m poweropd_lite.reproduce --out {queue.out} goes on")
    say(f"files   {queue.out}: {'  '.join(files)}")
    return _result(queue, stopped)
