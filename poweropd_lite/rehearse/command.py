"""What audit and advise share: measuring with progress and a way to stop, one report folder, and the command line."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from poweropd_lite.base.config import Config, config_to_check
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.flags import Parser, given
from poweropd_lite.base.stop import StopRequest

if TYPE_CHECKING:
    from poweropd_lite.rehearse.scored import Pace

Report = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One of the two commands. Its files are `name`.json, `name`.md and `name`.png."""

    name: str
    parent: str  # the folder that new reports go to
    measure: "Callable[[Config, Any, Pace], Report]"  # the work; the second is the command's own settings
    screen: Callable[[Report], str]
    markdown: Callable[[Report], str]
    draw: Callable[[Report, Path], None]


def make_report(check: Check, config: Config, settings: BaseModel, say: Callable[[str], None]) -> Report:
    """Measures, writes the report's folder and returns the report, with the folder in it.

    Raises UserError for what the user can mend, and scored.Stopped, a KeyboardInterrupt, when a signal came.
    """
    import poweropd_lite
    from poweropd_lite.base.progress import Counting
    from poweropd_lite.checks.machine import own_threads
    from poweropd_lite.rehearse.folder import check_out, report_title, write_report
    from poweropd_lite.rehearse.scored import STOPPING, Pace

    check_out(settings.out, check.parent)
    with own_threads(), StopRequest(STOPPING) as stop, Counting("rollout", say=say) as counting:
        started = time.monotonic()
        pace = Pace(stop, counting, say)
        report = check.measure(config, settings, pace)
        report["seconds"] = round(time.monotonic() - started, 1)
        report["made"] = {"poweropd_lite": poweropd_lite.__version__, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        name, tables, title = check.name, check.markdown(report), report_title(report)
        folder = write_report(
            settings.out, check.parent, title, name, report, tables, lambda file: check.draw(report, file), pace.check
        )
    say(check.screen(report))
    say(f"files   {folder}: {name}.json  {name}.md  {name}.png")
    return report | {"folder": str(folder)}


def run_for_report(
    parser: Parser, argv: list[str] | None, kind: type[BaseModel], work: Callable[[Config, Any], Report]
) -> int:
    """Parses `argv`, calls work(config, settings of `kind`) and returns 0 if the verdict is sound, 1 if not, 130 or 143 if stopped.

    With --json only the report is on stdout; whatever else is said goes to stderr.
    """
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and all else to stderr")
    args = parser.parse(argv)
    settings = checked(kind, given(args, kind))
    config = config_to_check(args.config, given(args))
    from poweropd_lite.base.stop import Stopped

    try:
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            report = work(config, settings)
    except Stopped as stopped:
        return 128 + stopped.signal
    if args.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    return 0 if report["verdict"]["sound"] else 1
