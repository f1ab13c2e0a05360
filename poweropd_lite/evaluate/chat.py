"""Talks to a student, before and after its training side by side: `python -m poweropd_lite.chat runs/power10-seed0`.

A line is a question, and each who answers goes on with its own conversation. /new begins anew; /quit, Ctrl-D and Ctrl-C
end it; Ctrl-C during an answer stops that answer. Lines may be piped in: `echo Compute 12 + 30 - 7. | poweropd chat RUN`.
"""

import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.config import as_in_training
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import Kernels, section
from poweropd_lite.cli import config_parser, given

if TYPE_CHECKING:
    from poweropd_lite.evaluate.answer import Conversation, Said

WIDE = 100  # columns of a terminal from which on answers stand side by side
GAP = " | "
EXAMPLE = "Compute 4 * 5 + 8 * 11."
COMMANDS = "/new begins anew, /quit ends"


class ChatConfig(BaseModel):
    """One chat. Fields are flags of the chat command, beside the model. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    before: bool = Field(
        True, description="the student before its training answers too", json_schema_extra=section("who answers")
    )
    teacher: bool = Field(False, description="a run's teacher answers too, at the run's teacher_bits")
    base: str | None = Field(None, min_length=1, description="an adapter's base model; if not given, the one it names")
    trust_remote_code: bool = Field(False, description="run Python code of the models; only for sources you trust")
    single: bool = Field(
        False,
        description="every question stands alone: nothing said before is part of the next prompt",
        json_schema_extra=section("how"),
    )
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 is greedy, always the likeliest token")
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer; if not given, the run's own")
    seed: int = Field(0, ge=0, lt=2**32, description="fixes the sampling")
    kernels: Kernels = as_in_training("kernels")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 ended, 1 a piped question could not be asked, 2 bad input, 130 Ctrl-C in a pipe."""
    parser = config_parser("python -m poweropd_lite.chat", __doc__, ChatConfig)
    parser.add_argument(
        "model", metavar="RUN", help="a run folder, an adapter, a model or hub id, bundled-student or bundled-teacher"
    )
    args = parser.parse(argv)
    asked = checked(ChatConfig, given(args, ChatConfig))
    from poweropd_lite.evaluate.answer import Conversation, find_manner, speaking

    manner = find_manner(args.model, asked.base, asked.max_new_tokens, asked.teacher, asked.trust_remote_code)
    before = asked.before and manner.was_trained
    with speaking(manner, before, asked.teacher, asked.kernels) as speakers:
        for note in manner.target.notes:
            print(note)
        if asked.before and not before:
            print(f"{args.model} is a whole model and no run's, so there is no before: it answers alone")
        conversation = Conversation(speakers, manner, asked.temperature, asked.seed, asked.single)
        if not sys.stdin.isatty():
            return _read_through(conversation)
        how = f"at temperature {asked.temperature:g}" if asked.temperature else "greedily"
        print(f"{', '.join(speakers)}: {how}, at most {manner.longest:,} tokens an answer; {COMMANDS}", flush=True)
        if manner.target.is_bundled:
            print(f"the bundled pair solves arithmetic problems and nothing else, such as: {EXAMPLE}", flush=True)
        _talk(conversation)
    return 0


def _read_through(conversation: "Conversation") -> int:
    """Asks every line that is piped in; returns 1 if one could not be asked."""
    code = 0
    try:
        for line in filter(None, map(str.strip, sys.stdin)):
            print(f"> {line}", flush=True)
            try:
                _take(line, conversation, None)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                code = 1
    except EOFError:
        pass
    except UnicodeDecodeError as error:
        raise UserError(f"what is piped in is no UTF-8 text: {error}") from None
    return code


def _talk(conversation: "Conversation") -> None:
    """Asks what is typed, until the end."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its editing and history
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        except UnicodeDecodeError as error:
            print(f"error: that is no UTF-8 text: {error}")
            continue
        try:
            _take(line, conversation, _columns())
        except EOFError:
            return
        except UserError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print("\nstopped: this question and what was answered to it are forgotten")


def _columns() -> int:
    """The terminal's width now; what the environment says of it is as old as the shell, or readline."""
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 80


def _take(line: str, conversation: "Conversation", columns: int | None) -> None:
    """Does what a line says, to a terminal of so many columns or a pipe; raises EOFError for /quit."""
    if line == "/quit":
        raise EOFError
    if line == "/new":
        conversation.forget()
        print("begun anew")
    elif line.startswith("/") and " " not in line:
        raise UserError(f"no command {line}; {COMMANDS}, and every other line is a question")
    elif line:
        _show(conversation.ask(line), len(conversation.speakers), columns)
    sys.stdout.flush()


def _show(answers: "Iterator[tuple[str, Said]]", count: int, columns: int | None) -> None:
    """Prints answers as they come, or side by side where the terminal is wide and their characters are not."""
    if columns is None or columns < WIDE or count == 1:
        for name, said in answers:
            print(f"{_head(name, said)}\n{said.text}\n", flush=True)
        return
    told = [(_head(name, said), said.text) for name, said in answers]
    one_wide = all(unicodedata.east_asian_width(c) not in "WF" for _, text in told for c in text)
    print((side_by_side(told, columns) if one_wide else "\n\n".join(map("\n".join, told))) + "\n")


def side_by_side(told: Sequence[tuple[str, str]], columns: int) -> str:
    """Returns texts under their heads, wrapped, as columns that fill a terminal of so many."""
    width = (columns - len(GAP) * (len(told) - 1)) // len(told)

    def wrapped(text: str) -> list[str]:
        lines = [textwrap.wrap(line.expandtabs(4), width) or [""] for line in text.split("\n")]
        return [part for parts in lines for part in parts]

    cells = [[*wrapped(head), "-" * width, *wrapped(text)] for head, text in told]
    rows = zip_longest(*cells, fillvalue="")
    return "\n".join(GAP.join(cell.ljust(width) for cell in row).rstrip() for row in rows)


def _head(name: str, said: "Said") -> str:
    cut = ", cut off there" if said.truncated else ""
    return f"{name} ({said.tokens:,} tokens{cut}, {said.seconds:.1f} s)"
