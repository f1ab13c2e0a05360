"""One sitting of a queue: what is asked for, whether it fits, the work, the tables and the page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import check_writable
from poweropd_lite.base.progress import clock
from poweropd_lite.base.stop import StopRequest, end_cell
from poweropd_lite.cli import as_flags
from poweropd_lite.reproduce.forecast import make_forecasts, seconds_left
from poweropd_lite.reproduce.grid import DONE, FAILED, RUNNING, STATES, WAITING, State
from poweropd_lite.reproduce.pages import write_pages
from poweropd_lite.reproduce.settings import split_settings
from poweropd_lite.reproduce.settle import set_right, settle
from poweropd_lite.reproduce.state import Queue, locked, read_queue, write_pairs
from poweropd_lite.reproduce.tables import write_tables
from poweropd_lite.reproduce.work import Workers


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` returns: the folder, every task's state by name, and the signal that stopped it (or 0)."""

    folder: Path
    states: dict[str, State]
    signal: int = 0


def reproduce(say: Callable[[str], None], settings: dict[str, Any]) -> Reproduced:
    config, training, given = split_settings(settings)
    out = Path(config.output or f"reproductions/{config.preset or 'custom'}")
    if not config.dry_run:
        check_writable(out, "--output")
    there = read_queue(out)
    if config.tables_only:
        if there is None:
            raise UserError(f"{out} holds no queue yet; type --output with a folder that a queue was run in")
        return _finish(there, 0, say)
    asked = settle(config, training, given, there, out)
    if there is not None and there.training:
        say(f"{out} goes on with the settings that it was begun with: {as_flags(there.training)}")
    if (out / ".lock").exists():
        with locked(out):  # which raises where another process holds it: before anything is planned
            pass
    with StopRequest("stopping: nothing was begun") as stop:
        make_forecasts(asked, config.pairs or [], config.gpu, config.jobs, say, stop)
    if stop:
        end_cell(stop.signal)
        return _result(asked, stop.signal)
    if config.dry_run:
        _say_size(asked, config.jobs, say, planned=config.gpu is not None)
        return _result(asked)
    with locked(out):  # read once more, for another process may have come between
        queue = settle(config, training, given, read_queue(out) if (out / "queue.json").exists() else None, out)
        queue.forecasts = asked.forecasts
        for line in set_right(queue, config.retry_failed):
            say(line)
        queue.save()  # before any folder: killed between the two, it would be refused as a folder of something else
        for folder in ("runs", "logs"):
            (out / folder).mkdir(exist_ok=True)
        write_pairs(out / "pairs", queue.pairs)
        _say_size(queue, config.jobs, say)
        done = _finish(queue, Workers(queue, config.jobs, say).work(), say)
    end_cell(done.signal)
    return done


def _result(queue: Queue, stopped: int = 0) -> Reproduced:
    return Reproduced(queue.out, {name: task.state for name, task in queue.tasks.items()}, stopped)


def _say_size(queue: Queue, jobs: int, say: Callable[[str], None], planned: bool = False) -> None:
    runs = sum(task.role == "run" for task in queue.tasks.values())
    counts = {state: len(queue.in_state(state)) for state in STATES}
    text = "".join(f"; {count} {state}" for state, count in counts.items() if count and state != WAITING)
    say(f"{runs} runs to train and score, {len(queue.tasks) - runs} models to score, in {queue.out}{text}")
    left = seconds_left(queue, {}, planned)
    if left is None:
        say("no estimate: plan knows no time for this machine; the first that is done will tell")
    elif left:
        say(f"estimate: about {clock(left / jobs)} for what is left" + f", {jobs} side by side" * (jobs > 1))


def _finish(queue: Queue, stopped: int, say: Callable[[str], None]) -> Reproduced:
    """Writes the tables and the page, unless a signal asks for the end, and says what came out."""
    files = [*write_tables(queue), *([] if stopped else write_pages(queue, say))]
    say(f"{len(queue.in_state(DONE))} of {len(queue.tasks)} done")
    for task in queue.in_state(FAILED):
        say(f"failed: {task.name}: {task.message} ({queue.out / task.log}); --retry-failed tries it again")
    if waiting := queue.in_state(WAITING, RUNNING):
        say(f"{len(waiting)} not run to the end: python -m poweropd_lite.reproduce --output {queue.out} goes on")
    say(f"files   {queue.out}: {'  '.join(files)}")
    return _result(queue, stopped)
