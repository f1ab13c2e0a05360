r"""Whether a completion's final answer is right: `is_correct(completion, gold)`, or `grade` for many at once.

answers.py finds the answer, normal.py writes it in one way, equal.py, quantity.py and algebra.py compare. What is decided by reading alone (equal
strings, plain numbers, words) is decided here; the rest by judges.py, in processes that are ended after a second. An
answer that is hostile on sight (a tower of powers, a million characters) is refused; refused and unfinished ones count as
wrong, and are counted apart.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poweropd_lite.grade.answers import final_answer, neighbouring_boxes, reference_answer
from poweropd_lite.grade.equal import same_as_written
from poweropd_lite.grade.judges import Question, judges
from poweropd_lite.grade.normal import split_list, tidy
from poweropd_lite.grade.quantity import number, same_number, without_unit

GRADER = "3"  # changes when a verdict may; saved beside every score

LONGEST = 1000  # characters of an answer that is looked at; the longest of the seven benchmarks' has 301
DEEPEST = 30  # brackets within brackets
_STOREY = r"[})]?(?:\^|\*\*)[{(]?"
_HOSTILE = [  # in an answer without its spaces
    re.compile(r"\d{400}"),  # an enormous number
    re.compile(r"(?:\^|\*\*)[{(]?-?\d{6}"),  # to a power of a million
    re.compile(rf"\d{_STOREY}\d{{1,6}}{_STOREY}\d{{1,6}}{_STOREY}\d"),  # four storeys
    re.compile(rf"\d{_STOREY}\d{{2,6}}{_STOREY}\d{{2}}"),  # 9^{99^{99}}
    re.compile(r"\d{5}[})]?!"),  # the factorial of a large number
    re.compile(r"![})]{0,3}![})]{0,3}!"),  # and of a factorial of a factorial
]


@dataclass(frozen=True)
class Sample:
    """A completion to be graded."""

    completion: str
    gold: str
    benchmark: str | None = None  # gsm8k may answer without a box
    tolerance: float | None = None  # the largest difference from a number that the benchmark allows


@dataclass(frozen=True)
class Verdict:
    """What became of a sample."""

    correct: bool
    answer: str | None  # as it stands in the completion; None if there is none
    undecided: bool = False  # refused, not decided within a second, or past what sympy can do: counts as wrong
    official: bool | None = None  # the released code's verdict, if it was asked for


def is_correct(completion: str, gold: str, benchmark: str | None = None, tolerance: float | None = None) -> bool:
    r"""Returns whether the final answer of `completion` is `gold`: an answer, or a worked solution with one at its end.

    The answer is the last `\boxed{...}`; without one what follows the last "answer is"; with benchmark "gsm8k" then what
    follows `####`, or the last number. No answer is wrong. Never raises for a text; works from any thread.
    """
    return grade([Sample(completion, reference_answer(str(gold)), benchmark, tolerance)])[0].correct


def grade(
    samples: Sequence[Sample], official: bool = False, tick: Callable[[int, int], object] = lambda done, total: None
) -> list[Verdict]:
    """Returns the verdict on each sample, in order; `tick` is told how many of how many hard ones are decided."""
    if any(s.tolerance is not None and not 0 <= s.tolerance < float("inf") for s in samples):
        raise ValueError("a tolerance must be a finite number, at least 0")
    found = [final_answer(s.completion, s.benchmark) for s in samples]
    verdicts: list[bool | None] = []
    questions: dict[Question, list[int]] = {}  # equal ones are asked once
    for i, (sample, answer) in enumerate(zip(samples, found, strict=True)):
        verdict: bool | None = False
        if answer is not None:
            verdict = quick_verdict(sample.gold, answer, sample.tolerance)
            if verdict is None and not is_hostile(answer):  # a refused one stays undecided
                questions.setdefault(Question(sample.gold, answer, sample.tolerance), []).append(i)
        verdicts.append(verdict)
    _decide(questions, verdicts, tick)
    # Several answers may stand in several boxes: looked at only where the last box alone is not right.
    questions = {}
    for i, sample in enumerate(samples):
        if verdicts[i] is True or found[i] is None or len(sample.gold) > 2 * LONGEST:
            continue
        if len(split_list(tidy(sample.gold))) > 1:
            joined = neighbouring_boxes(sample.completion)
            if joined is not None and not is_hostile(joined):
                questions.setdefault(Question(sample.gold, joined, sample.tolerance), []).append(i)
    more: list[bool | None] = [None] * len(samples)
    _decide(questions, more, tick)
    theirs: list[bool | None] = [None] * len(samples)
    if official:
        questions = {}
        for i, sample in enumerate(samples):
            questions.setdefault(Question(sample.gold, sample.completion, official=True), []).append(i)
        _decide(questions, theirs, tick)
    return [
        Verdict(
            correct=bool(verdict or more[i]),
            answer=found[i],
            undecided=verdict is None and not more[i],
            official=bool(theirs[i]) if official else None,
        )
        for i, verdict in enumerate(verdicts)
    ]


def _decide(questions: dict[Question, list[int]], verdicts: list[bool | None], tick: Callable) -> None:
    if questions:
        for verdict, places in zip(judges().decide(list(questions), tick), questions.values(), strict=True):
            for i in places:
                verdicts[i] = verdict


def quick_verdict(gold: str, answer: str, tolerance: float | None = None) -> bool | None:
    """Returns the verdict where reading is enough: equal strings, two plain numbers, words; None where it takes algebra."""
    if answer.strip() == gold.strip():
        return bool(gold.strip())
    if len(answer) > LONGEST:
        return None
    if len(gold) > 2 * LONGEST:  # nothing that is not written alike is that
        return False
    right, said = tidy(gold), tidy(answer)
    read = same_as_written(right, said)
    if read is not None:
        return read
    ours, theirs = number(without_unit(right)), number(without_unit(said))
    return None if ours is None or theirs is None else same_number(ours, theirs, tolerance)


def is_hostile(answer: str) -> bool:
    """Returns whether an answer is refused unread: too long, too deep, or with numbers too large to be written out."""
    if len(answer) > LONGEST or "\0" in answer:
        return True
    depth = deepest = 0
    for c in answer:
        depth += (c in "{([") - (c in "})]")
        deepest = max(deepest, depth)
    close = "".join(answer.split())
    return deepest > DEEPEST or any(pattern.search(close) for pattern in _HOSTILE)
