"""The command line that audit and advise share: their own flags and all of training's, and --json."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from poweropd_lite.config import config_to_check
from poweropd_lite.config_files import checked
from poweropd_lite.flags import Parser, given


def run_for_report(
    parser: Parser,
    argv: list[str] | None,
    kind: type[BaseModel],
    work: Callable[..., dict[str, Any]],
    sound: Callable[[dict[str, Any]], bool],
) -> int:
    """Parses `argv`, calls work(config, settings of `kind`) and returns 0 if the report is `sound`, 1 if not, 130 or 143 if stopped.

    With --json only the report is on stdout; whatever else is said goes to stderr.
    """
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and all else to stderr")
    args = parser.parse(argv)
    settings = checked(kind, given(args, kind))
    config = config_to_check(args.config, given(args))
    from poweropd_lite.scored import Stopped

    try:
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            report = work(config, settings)
    except Stopped as stopped:
        return 128 + stopped.signal
    if args.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    return 0 if sound(report) else 1
