"""Scores by a user's function: `find_grader("module:function")` before anything else, then `score`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poweropd_lite.grade.judges import SECONDS, UNDECIDED, WALL_SECONDS, judges

ENDED = f"more than {SECONDS:g} s of processor time or {WALL_SECONDS:g} s by the clock, or it ended its process"


@dataclass(frozen=True)
class Grader:
    """A user's function: its name, module:function, and the SHA-256 of the file that its module is."""

    name: str
    sha256: str

    @property
    def label(self) -> str:
        """What stands beside every score: another function, or another text of it, has another one."""
        return f"{self.name} {self.sha256[:16]}"


@dataclass(frozen=True)
class Scored:
    """What became of a completion."""

    score: float  # 0 where there is none
    fault: str | None = None  # why there is none

    @property
    def undecided(self) -> bool:
        """Whether there is none."""
        return self.fault is not None


def find_grader(name: str, anew: bool = False) -> Grader:
    """Returns the function, imported in processes of its own, once or `anew`; raises GraderFault for one that can't be called."""
    return Grader(name, judges(name, anew).about["sha256"])


def score(
    grader: Grader, asked: Sequence[tuple[str, str]], tick: Callable[[int, int], object] = lambda done, total: None
) -> list[Scored]:
    """Returns the score of each completion, beside which stands the data's row as JSON."""
    questions = [{"completion": completion, "row": row} for completion, row in asked]
    found = [json.dumps(ENDED).encode() if r == UNDECIDED else r for r in judges(grader.name).replies(questions, tick)]
    values = map(json.loads, found)
    return [Scored(0.0, value) if isinstance(value, str) else Scored(value) for value in values]
