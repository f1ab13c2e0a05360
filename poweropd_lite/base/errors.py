"""What is said to a user when something is wrong: the one exception meant for users, and what a check found.

A UserError's text is printed as it stands, without a traceback (cli.run_command). Findings are printed by the doctor; train
refuses what is a refusal and says what is to be told. Both ask the same checks.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

WIDTH = 118  # of a finding on a screen
MOST_LINES, LONGEST_LINE = 60, 1500  # of a message, whatever it quotes
# Control characters but for tab and newline, and those that turn the direction of writing: a terminal or page would obey them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Something the user can mend. The message says what was found, why it can't work, and what to type instead."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and IPython show in place of a traceback."""
        return [f"error: {self}"]


class NotDownloaded(UserError):
    """What only the hub has, when the hub can't be asked: whether it is right is not known."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(f"{found}\nstart it where the hub can be reached, or {mend}")
        self.found = found


def printable(text: str) -> str:
    """Returns a text without characters that a terminal or a page would obey: control and bidi ones, half characters."""
    return _UNPRINTABLE.sub("", text).encode("utf-8", "replace").decode()


def message(error: UserError) -> str:
    """Returns what is printed of an error: printable, and of no more lines and letters than a user can read."""
    lines = [printable(line) for line in str(error).split("\n", MOST_LINES)]
    if more := len(lines) > MOST_LINES:
        lines = lines[:MOST_LINES]
    shown = [cut(line, LONGEST_LINE) for line in lines]
    return "\n".join([*shown, *(["..."] if more else [])])


def cut(text: str, most: int = 200) -> str:
    """Returns a text of at most `most` letters, saying how many are left out of its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most - 40]} ... ({len(text) - most:,} letters) ... {text[-40:]}"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "refusal"]
    check: str  # what was looked at, in a word or two
    found: str  # what was found and, unless it is ok, why that matters
    mend: str = ""  # the config line, or what to do
    evidence: dict[str, Any] = field(default_factory=dict)  # JSON: the numbers behind it
    told: bool = False  # whether train says it too

    def __str__(self) -> str:
        return f"{self.found}; {self.mend}" if self.mend else self.found

    def shown(self) -> list[str]:
        """Returns it as lines for a screen."""
        lines: list[str] = []
        for part in f"{self.level:8}{self.check}: {self.found}".split("\n"):
            start = " " * 8 if lines else ""
            lines += textwrap.wrap(
                part.strip(), WIDTH, initial_indent=start, subsequent_indent=" " * 8, break_long_words=False
            )
        if self.mend:
            lines += textwrap.wrap(self.mend, WIDTH, initial_indent="        mend: ", subsequent_indent=" " * 14)
        return lines

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "told"}


def refuse(findings: Iterable[Finding]) -> None:
    """Raises UserError with every refusal among the findings."""
    if refusals := [str(f) for f in findings if f.level == "refusal"]:
        raise UserError("\n".join(refusals))


def notices(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Returns what train says of the findings."""
    return tuple(str(f) for f in findings if f.told)
