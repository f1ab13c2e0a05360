"""What is said to a user when something is wrong: the one exception meant for users, and what a check found.

A UserError's text is printed as it stands, without a traceback (cli.run_command). Findings are printed by the doctor; train
refuses what is a refusal and says what is to be told. Both ask the same checks.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

WIDTH = 118  # of a finding on a screen


class UserError(Exception):
    """Something the user can mend. The message says what was found, why it can't work, and what to type instead."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and IPython show in place of a traceback."""
        return [f"error: {self}"]


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
