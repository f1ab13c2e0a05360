"""Says whether a run fits and how long it will take: `python -m poweropd_lite.plan --config qwen3-0.6b-4b --gpu 24`.

Memory by phase for prompts and completions as long as the config allows, operations of a step, and for a card that is
named an estimate of the time. If it does not fit, the smallest change that does; --output FILE makes a config of it.
With a card and no config it is which of the paper's pairs the card holds: `python -m poweropd_lite.plan --gpu 12`.
"""

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import QWEN_CONFIG, checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.named import config_to_check, names_models
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.plan.settings import PlanConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 0: it fits, or a config that does was written; 1: it does not; 2: bad input.

    Of a card's pairs 0 says that one fits, as it is or with the flags that are said, and 1 that none does.
    """
    parser = config_parser(
        "python -m poweropd_lite.plan",
        f"{__doc__.splitlines()[0]}\n\n"
        "Any setting of training may follow. Without a config that names models it is the paper's four pairs on the card of\n"
        "--gpu, or of this machine; and without a card the bundled pair. Models of your own are planned for this machine, with its\n"
        "card or without one, unless --gpu names a card.",
        PlanConfig,
        Config,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    args = parser.parse(argv)
    asked, flags = checked(PlanConfig, given(args, PlanConfig)), given(args, Config, PlanConfig)
    of_a_card = _of_a_card(args.config, flags, asked)
    config = load_config(QWEN_CONFIG, **flags) if of_a_card else config_to_check(args.config, flags)
    out = Path(asked.output) if asked.output else None
    if out is not None:
        _check_new(out)
    from poweropd_lite.plan.make import plan
    from poweropd_lite.plan.pairs import plan_pairs, table
    from poweropd_lite.plan.parallel import program
    from poweropd_lite.plan.report import words

    with contextlib.redirect_stdout(sys.stderr):
        found, fitting = plan_pairs(flags, asked, _say) if of_a_card else plan(config, asked, _say)
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(table(found) if of_a_card else words(found, config.steps))
    if out is not None and fitting is not None:
        _write(out, found, fitting)
        if not args.json:
            print(f"wrote   {out}: {program(asked.gpus)} -m poweropd_lite.train --config {shlex.quote(str(out))}")
        return 0
    if of_a_card:
        return 0 if found["recommended"] else 1
    return 1 if found["fits"] is False else 0


def _of_a_card(config: str | None, flags: dict[str, Any], asked: PlanConfig) -> bool:
    """Whether no pair is named, and a card is, or is here: then it is the paper's pairs that are planned."""
    if config is not None or names_models({}, flags):
        return False
    if asked.gpu is not None:
        return asked.gpu.lower() != "cpu"
    config_to_check(None, flags)  # what is refused is refused before torch is imported
    import torch

    return torch.cuda.is_available()


def _say(text: str) -> None:
    print(text, flush=True)


def _write(path: Path, found: dict[str, Any], fitting: Config) -> None:
    from poweropd_lite.base.files import write_text
    from poweropd_lite.plan.fit import config_text

    kind = "LoRA" if not fitting.full_finetune else "every weight trained"
    room = f"fits {found['machine']}" if found["usable_bytes"] else f"needs {found['needed_bytes'] / 2**30:.1f} GiB"
    room += " on each of {cards} cards".format(**found["gpus"]) if found["gpus"] else ""
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
    from poweropd_lite.base.files import check_writable

    check_writable(path, "--output")


if __name__ == "__main__":
    run_command(main)
