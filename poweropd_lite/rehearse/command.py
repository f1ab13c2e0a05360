"""The command line of audit and advise: flags, the report as text or JSON, the exit code. Imports no torch to parse."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.named import config_to_check
from poweropd_lite.cli import config_parser, given
from poweropd_lite.rehearse.settings import refuse_served


def run_for_report(
    name: str, about: str, kind: type[BaseModel], work: Callable[[Config, Any], Any], argv: list[str] | None
) -> int:
    """Parses `argv` and calls work(config, settings of `kind`); returns 0 if sound, 1 if not; a signal raises Stopped."""
    parser = config_parser(f"python -m poweropd_lite.{name}", about, kind, Config)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and all else to stderr")
    args = parser.parse(argv)
    settings = checked(kind, given(args, kind))
    config = config_to_check(args.config, given(args, Config, kind))
    refuse_served(config, name)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        report = work(config, settings)
    if args.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    return 0 if report["verdict"]["sound"] else 1
