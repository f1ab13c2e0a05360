"""Says whether a run fits and how long it will take: `python -m poweropd_lite.plan --config qwen3-0.6b-4b --gpu 24`.

Memory by phase for prompts and completions as long as the config allows, operations of a step, and for a card that is
named an estimate of the time. If it does not fit, the smallest change that does; --output FILE makes a config of it.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config, config_to_check
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_text
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.plan.settings import PlanConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 0: it fits, or a config that does was written; 1: it does not; 2: bad input."""
    parser = config_parser(
        "python -m poweropd_lite.plan",
        f"{__doc__.splitlines()[0]}\n\n"
        "Any setting of training may follow; without a config that names models it is the bundled pair's.",
        PlanConfig,
        Config,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    args = parser.parse(argv)
    asked = checked(PlanConfig, given(args, PlanConfig))
    config = config_to_check(args.config, given(args, Config, PlanConfig))
    out = Path(asked.output) if asked.output else None
    if out is not None:
        _check_new(out)
    from poweropd_lite.plan.make import plan
    from poweropd_lite.plan.report import words

    with contextlib.redirect_stdout(sys.stderr):
        found, fitting = plan(config, asked, say=lambda text: print(text, flush=True))
    print(json.dumps(found, indent=1, allow_nan=False) if args.json else words(found, config.steps))
    if out is not None and fitting is not None:
        _write(out, found, fitting)
        if not args.json:
            print(f"wrote   {out}: python -m poweropd_lite.train --config {out}")
        return 0
    return 1 if found["fits"] is False else 0


def _write(path: Path, found: dict[str, Any], fitting: Config) -> None:
    from poweropd_lite.plan.fit import config_text

    kind = "LoRA" if not fitting.full_finetune else "every weight trained"
    room = f"fits {found['machine']}" if found["usable_bytes"] else f"needs {found['needed_bytes'] / 2**30:.1f} GiB"
    comment = f"{fitting.pair}, {kind}: {room} by plan's arithmetic."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, config_text(fitting, comment))
    except OSError as error:
        mend = "type --output with a name in a folder of yours"
        raise UserError(f"can't write {path}: {error.strerror}; {mend}") from None


def _check_new(path: Path) -> None:
    """Raises UserError for a file that could not be written, before anything is planned."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there already, and a plan never writes over a file; type --output with a new name")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write into {there}; type --output with a name in a folder of yours")


if __name__ == "__main__":
    run_command(main)
