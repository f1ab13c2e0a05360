"""The page of a queue's whole grid, by the report command in a process of its own: the queue itself never imports torch."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from poweropd_lite.base.files import read_json
from poweropd_lite.problems.benchmarks import run_benchmarks
from poweropd_lite.reproduce import child
from poweropd_lite.reproduce.grid import DONE, Task
from poweropd_lite.reproduce.rows import pair_names
from poweropd_lite.reproduce.state import Queue, json_or_none, read_scores

PAGE = "report"  # in the queue's folder; with several pairs it holds a folder a pair


def write_pages(queue: Queue, say: Callable[[str], None]) -> list[str]:
    """Draws the finished runs of every pair as a page, unless it is there and newer; returns the pages' files.

    What can't be drawn is said and left out: the tables stand without it.
    """
    runs: dict[str, list[Task]] = {}
    for task in queue.in_state(DONE):
        if task.role == "run":
            runs.setdefault(task.pair, []).append(task)
    several = len(queue.pairs) > 1
    if several and (queue.out / PAGE / "report.json").exists():  # of when there was one pair: its place is taken
        shutil.rmtree(queue.out / PAGE)
    found = []
    for pair in (name for name in pair_names(queue) if name in runs):
        folder = Path(PAGE, pair) if several else Path(PAGE)
        base, teacher = (
            next((t for t in queue.in_state(DONE) if t.role == role and pair in t.pairs), None)
            for role in ("base", "teacher")
        )
        model, own = teacher or base, run_benchmarks(queue.pairs[pair])
        scores = read_scores(queue, model) if model else None
        if own and scores and set(own) != (theirs := set(scores.benchmarks) - {"mean"}):
            of = f"it was scored on {', '.join(sorted(theirs))}, and training's own evaluation is of {', '.join(own)}"
            say(f"{queue.out / folder} is without teacher and base: {of}")
            base = teacher = None
        reason = _draw(queue, runs[pair], base, teacher, folder)
        if reason is None:
            found.append(f"{folder}/index.html")
            for sentence in ((json_or_none(queue.out / folder / "report.json") or {}).get("answer") or [])[:1]:
                say(f"{pair}: {sentence}")
        else:
            say(f"{queue.out / folder} was not drawn: {reason}; the tables are whole")
    return found


def _draw(queue: Queue, tasks: list[Task], base: Task | None, teacher: Task | None, folder: Path) -> str | None:
    """Makes a page in `folder`; returns why it could not."""
    page, failure = queue.out / folder, queue.out / "logs" / f".{str(folder).replace('/', '-')}.json"
    folders = [str(queue.run_folder(task)) for task in tasks]
    flags = [*folders, "--output", str(page)]
    models = {"--base": base, "--teacher": teacher}
    flags += [text for flag, task in models.items() if task for text in (flag, str(queue.scores_folder(task)))]
    if _is_new(queue, page, tasks, base, teacher):
        return None
    process = None
    try:
        how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = child.start(["poweropd_lite.report", *flags], failure, **how)
        code = process.wait()
    except OSError as error:
        return str(error)
    except BaseException:  # a signal: the tables are written, and nobody waits for the page
        if process is not None:
            process.send_signal(signal.SIGINT)  # on which it takes away what is half drawn
            process.wait()
        raise
    if code == 0:
        return None
    return " ".join(((json_or_none(failure) or {}).get("message") or f"report ended with code {code}").split())


def _is_new(queue: Queue, page: Path, tasks: list[Task], base: Task | None, teacher: Task | None) -> bool:
    """Whether a page is of these very runs, and newer than what they and the models came to."""
    try:
        numbers = read_json(page / "report.json")
        same = {run["name"] for run in numbers["runs"]} == {task.name for task in tasks}
        results = [queue.scores_folder(t) / "results.json" for t in (*tasks, base, teacher) if t is not None]
        made = (page / "report.json").stat().st_mtime_ns
        return (
            same
            and [numbers[role] is None for role in ("base", "teacher")] == [base is None, teacher is None]
            and all(r.stat().st_mtime_ns < made for r in results)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
