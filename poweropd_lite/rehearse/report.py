"""The report of audit and advise: the fields of both, its tables on the screen and in Markdown, and its folder."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

from pydantic import BaseModel

import poweropd_lite
from poweropd_lite.base.config import Config, full_name
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import (
    check_writable,
    existing,
    flush_files,
    free_folder,
    refuse_full,
    sync_folder,
    write_json,
)
from poweropd_lite.base.progress import Counting
from poweropd_lite.base.stop import StopRequest, stopped_at_once
from poweropd_lite.base.tables import markdown_table, number
from poweropd_lite.base.teachers import SELF
from poweropd_lite.checks.machine import own_threads
from poweropd_lite.rehearse.scored import Drawn
from poweropd_lite.rehearse.settings import refuse_served
from poweropd_lite.run.session import Prepared

Cells = list[list[str]]  # the first line is the head
Rows = Mapping[str, Mapping[str, Any]]  # by label
STOPPING = "stopped; nothing is written"
FULL = "a report never writes over another"


class Verdict(TypedDict):
    """On the config's own reward."""

    sound: bool
    uncertain: NotRequired[bool]  # of an audit: whether other rollouts might say otherwise
    line: str  # yes or no, what was measured, against which limit, and at a no what to type instead
    note: str  # what is uncertain, or was not compared and why; mostly empty


class Report(TypedDict):
    """What both commands' JSON files hold; a reward's row names its `reward` and `alpha` (None but for power)."""

    own: str  # label of the reward that is judged
    device: str
    dtype: str
    rollouts: int
    tokens: int
    settings: dict[str, Any]
    config: dict[str, Any]
    verdict: NotRequired[Verdict]
    seconds: NotRequired[float]
    made: NotRequired[dict[str, str]]
    folder: NotRequired[str]  # not in the file


R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Check(Generic[R]):
    """One of the two commands. Its files are `name`.json, `name`.md and `name`.png."""

    name: str
    parent: str  # the folder that new reports go to
    measure: Callable[[Config, Any, Counting], R]  # the work; the second is the command's own settings
    screen: Callable[[R], str]  # the tables that are printed
    numbers: Callable[[R], dict[str, Cells]]  # every number, by title, for the Markdown file
    draw: Callable[[R, Path], None]


def make_report(check: Check[R], config: Config, settings: Any, say: Callable[[str], None]) -> R:
    """Measures, writes the report's folder and returns the report, with the folder in it.

    Raises UserError for what the user can mend, and base.stop.Stopped, a KeyboardInterrupt, when a signal came.
    """
    if config.teacher == SELF:
        found = f"teacher self is the student's own base, so there is no second model to {check.name}"
        raise UserError(f"{found}; type --teacher with one")
    refuse_served(config, check.name)
    check_out(settings.output, check.parent)
    with own_threads(), StopRequest(STOPPING) as stop, Counting("rollout", say=say) as counting:
        started = time.monotonic()
        with stopped_at_once(STOPPING):
            report = check.measure(config, settings, counting)
        report["seconds"] = round(time.monotonic() - started, 1)
        report["made"] = {"poweropd_lite": poweropd_lite.__version__, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        verdict = [line for line in (report["verdict"]["line"], report["verdict"]["note"]) if line]
        lines = [f"# {check.name.capitalize()}: {subject(report)}", *(f"- {line}" for line in verdict)]
        lines.append(f"What each number is: docs/{check.name}.md.")
        lines += [f"## {title}\n\n{markdown_table(cells)}" for title, cells in check.numbers(report).items()]

        def fill(folder: Path) -> None:
            write_json(folder / f"{check.name}.json", report)
            (folder / f"{check.name}.md").write_text("\n\n".join(lines), encoding="utf-8")
            check.draw(report, folder / f"{check.name}.png")
            stop.check()

        pair = [Path(name.rstrip("/")).name or "model" for name in (config.student, config.teacher)]
        new = f"{'-'.join(dict.fromkeys(pair))}-{config.teacher_bits}bit-{report['own'].replace(' ', '')}"
        folder = write_folder(settings.output, check.parent, new, fill)
    say("\n".join([f"{subject(report)}, on {report['device']} in {report['dtype']}", check.screen(report), *verdict]))
    say(f"files   {folder}: {check.name}.json  {check.name}.md  {check.name}.png")
    report["folder"] = str(folder)
    return report


def about(config: Config, settings: BaseModel, ready: Prepared, drawn: Drawn, own: str) -> Report:
    """Returns the fields that both commands know once the rollouts are drawn."""
    return {
        "own": own,
        "device": ready.device.type,
        "dtype": str(ready.dtype).removeprefix("torch."),
        "rollouts": len(drawn.lengths),
        "tokens": sum(drawn.lengths),
        "settings": settings.model_dump(),
        "config": config.model_dump(),
    }


def table(first: str, rows: Rows, columns: Sequence[tuple[str, ...]], own: str = "") -> Cells:
    """Returns `rows` under `columns`: a head, a key, the number's form, and perhaps the key of what marks it "!"."""

    def cell(row: Mapping[str, Any], key: str, form: str, flag: str = "") -> str:
        return number(row[key], form) + "!" * bool(flag and row[flag])

    body = [[label + " *" * (label == own), *(cell(row, *c[1:]) for c in columns)] for label, row in rows.items()]
    return [[first, *(c[0] for c in columns)], *body]


def every_number(first: str, rows: Rows) -> Cells:
    """Returns all numbers of `rows` under their names in the JSON file; those of `interval` are its ends."""
    flat = {}
    for label, row in rows.items():
        intervals = row.get("interval", {}).items()
        ends = {f"{k} {end}": b and b[i] for k, b in intervals for i, end in enumerate(("from", "to"))}
        flat[label] = {k: v for k, v in {**row, **ends}.items() if type(v) in (int, float, NoneType) and k != "alpha"}
    return table(first, flat, [(str(key), key, ".6g") for key in next(iter(flat.values()))])


def subject(report: Report) -> str:
    run, size = report["config"], f"{report['rollouts']} rollouts, {report['tokens']:,} tokens"
    student, teacher = (full_name(run[role], role) for role in ("student", "teacher"))
    return f"{student} <- {teacher} ({run['teacher_bits']}-bit), {size}"


def check_out(out: str | None, parent: str) -> None:
    """Raises UserError if the folder `out`, or a new one in `parent`, can't be made: asked before anything loads."""
    path = Path(out or parent).resolve()
    if out is not None:
        refuse_full(path, "--output", FULL)
    elif path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder for reports; type --output with the name of a new folder")
    check_writable(path, "--output")


def write_folder(out: str | None, parent: str, name: str, fill: Callable[[Path], None]) -> Path:
    """Makes the folder `out`, or a new one in `parent` after `name`, of the files that fill(folder) writes; returns it.

    They are written aside, so what `fill` raises leaves nothing, and what was there is never replaced. Raises UserError
    if the disk won't take it, or if something else has been put into `out` in the meantime.
    """
    try:
        with tempfile.TemporaryDirectory(dir=existing(Path(out or parent)), prefix=".writing-") as aside:
            fill(Path(aside))
            flush_files(Path(aside))
            path = Path(out).resolve() if out is not None else free_folder(Path(parent), name)
            path.mkdir(parents=True, exist_ok=True)
            refuse_full(path, "--output", FULL)  # the new files are in a hidden folder
            for file in sorted(Path(aside).iterdir()):
                os.replace(file, path / file.name)
            sync_folder(path)
    except OSError as error:
        why = f"{error.strerror or error} ({error.filename})"
        raise UserError(f"can't write the report: {why}; nothing half-written is left") from error
    return Path(out) if out is not None else path
