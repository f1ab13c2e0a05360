"""The command line: `poweropd COMMAND` (`poweropd train` is `python -m poweropd_lite.train`), flags made from settings, endings.

Exit codes: 0 done, or sound; 1 the answer is no (it does not fit, is refused, not sound, some runs failed); 2 bad input;
128 + n stopped by signal n (130 Ctrl-C, 143 SIGTERM), with what there was saved; 141 whoever read the output went away.
"""

import argparse
import errno
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, get_args, get_origin

from pydantic import BaseModel

from poweropd_lite import __version__
from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import nearest
from poweropd_lite.base.ending import end_process, ends_soon
from poweropd_lite.base.errors import UserError, cut, message
from poweropd_lite.base.stop import Stopped

COMMANDS = {
    "train": "trains a student by on-policy distillation",
    "evaluate": "scores a model on maths benchmarks",
    "export": "turns a run into what other programs load, and proves it first",
    "doctor": "says whether a pair, its data and this machine are sound",
    "plan": "says whether a run fits a card, and how long it takes",
    "audit": "says whether the teacher may be 4-bit at this alpha",
    "advise": "says what each reward and alpha would do, before any training",
    "report": "draws what happened in some runs, as one page",
    "reproduce": "trains and scores a grid of runs, and makes the paper's tables",
    "ask": "puts one question to a student",
    "chat": "talks to a student, before and after its training side by side",
}
_DISK_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
}
_PATH_FAULTS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}  # what was typed names no file


def main(argv: list[str] | None = None) -> int:
    """Hands the command line on to the command that it begins with; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: poweropd COMMAND ...\n")
        print("\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()))
        print("\npoweropd COMMAND --help explains each flag; --version prints the version")
        return 0
    if argv == ["--version"]:
        print(f"poweropd_lite {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"no command named '{name}'{nearest(name, COMMANDS)}")
    module = importlib.import_module(f"poweropd_lite.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"poweropd_lite.{name}.__main__")
    return module.main(rest)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with its exit code.

    A UserError becomes one message and code 2, and so does a disk that is full, broken or not ours, and an impossible path.
    """
    try:
        code = _exit_code(main)
    except Exception:
        if not ends_soon():
            raise
        traceback.print_exc()
        code = 1
    end_process(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        code = 2
    except (RuntimeError, MemoryError) as error:
        from poweropd_lite.base.memory import card_fault  # not on Windows, where --help works

        if (fault := card_fault(error)) is None:
            raise
        print(f"error: {fault}\nwhat was saved stands: type the command again", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13  # SIGPIPE, a name that Windows has not, and --help works there
    except OSError as error:
        no_place = "temporary directory" in str(
            error.strerror
        )  # as tempfile, which torch's import asks, says of full disks
        if not no_place and error.errno not in _DISK_FAULTS | _PATH_FAULTS:
            raise
        mend = "; type another path" if error.errno in _PATH_FAULTS else ""
        mend = "; make room there, or set TMPDIR to a folder that takes files" if no_place else mend
        where = "" if no_place else f": {error.filename or 'writing the run folder'}"
        said = UserError(f"{error.strerror}{where}{mend}")
        print(f"error: {message(said)}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        code = 128 + stopped.signal
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    return code


def console() -> None:
    """The `poweropd` script."""
    run_command(main)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, and which names the nearest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def format_usage(self) -> str:
        """Returns one line: what is no flag, and that flags follow, which the help lists below it."""
        named = [action for action in self._actions if not action.option_strings]
        formatter = self._get_formatter()
        formatter.add_usage(None, named, [], "")
        return f"{formatter.format_help().strip()} [--FLAG VALUE ...]"

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parses `argv`, or the command line. Raises UserError where no command can run (base/unix.py), after --help."""
        self.usage = self.format_usage()
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            names = [o for action in self._actions for o in action.option_strings]
            raise UserError(
                f"unknown argument '{cut(unknown[0])}'"
                + (nearest(flag, names) if flag.startswith("-") else "; --help lists the flags")
            )
        importlib.import_module("poweropd_lite.base.unix")
        return args


def config_parser(prog: str, description: str, *kinds: type[BaseModel]) -> Parser:
    """Returns a parser with a flag for every field of `kinds`, and --config where Config is one; one that is not given parses to None.

    A name that several kinds have, such as output, is a flag of the first.
    """
    parser = Parser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    taken: set[str] = set()
    for kind in kinds:
        if kind is Config:
            parser.add_argument("--config", metavar="FILE", help="YAML file of settings, or a shipped config's name")
        _add_fields(parser, kind, taken)
        taken |= set(kind.model_fields)
    return parser


def _add_fields(parser: Parser, kind: type[BaseModel], taken: set[str]) -> None:
    group: Any = parser
    for name, field in kind.model_fields.items():
        if name in taken:
            continue
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "section" in extra:
            group = parser.add_argument_group(str(extra["section"]))
        flag = "--" + name.replace("_", "-")
        default = "" if field.is_required() or field.default in (None, "") else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        if bool in (field.annotation, *get_args(field.annotation)):
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, dest=name, metavar=_metavar(field.annotation), help=text)


def given(
    args: argparse.Namespace, kind: type[BaseModel] = Config, beside: type[BaseModel] | None = None
) -> dict[str, Any]:
    """Returns the fields of `kind` that were given as flags, as they were typed; `none` of a field that may be unset as None.

    Those that `beside` has too are left out: they are its own.
    """
    own = kind.model_fields.keys() - (beside.model_fields.keys() if beside else ())
    typed = {name: getattr(args, name) for name in kind.model_fields if name in own and getattr(args, name) is not None}
    may_be_unset = {name for name, field in kind.model_fields.items() if type(None) in get_args(field.annotation)}
    return {name: None if value == "none" and name in may_be_unset else value for name, value in typed.items()}


def as_flags(settings: dict[str, Any]) -> str:
    """Returns settings as the flags to type, quoted for a shell."""
    parts = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            value = json.dumps(value) if isinstance(value, dict) else value
            text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{flag} {shlex.quote(text)}")
    return " ".join(parts)


def _metavar(annotation: Any) -> str:
    choices = get_args(annotation)
    if choices and all(isinstance(c, str | int) for c in choices) and get_origin(annotation) is not None:
        return "{" + ",".join(map(str, choices)) + "}"
    kinds = {str: "TEXT", int: "N", float: "X", dict: "JSON"}
    return next((word for kind, word in kinds.items() if annotation is kind or kind in choices), "VALUE")
