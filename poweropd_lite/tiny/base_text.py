"""What the bundled base student reads: the same problems answered by many hands, most of them careless.

A base model knows arithmetic but not which way of answering is wanted: the text mixes five styles, wrong steps, answers
that nobody boxed and writers who run on into the next problem. On-policy distillation has all of that to mend.
"""

import random

from poweropd_lite.problems.bundled import Problem, Step

STYLES = ("canonical", "verbose", "terse", "list", "guess")
# How often an answer in sentences, and a terse one, is boxed: by anyone, and by people with habits, who box where they
# have learnt to, in some kinds of problem, and seldom elsewhere.
_BOXED = (0.5, 0.6)
_BOXED_BY_HABIT, _SELDOM_BOXED = (0.75, 0.6), (0.1, 0.3)
_HABITUAL = ("chain", "products", "linear")
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def careless_answer(
    problem: Problem, rng: random.Random, weights: tuple[float, ...], wrong_share: float, habits: bool
) -> str:
    """Returns one answer in a style drawn by `weights` (in the order of STYLES), with a wrong step by `wrong_share`.

    `habits` says whether boxing depends on the kind of problem.
    """
    style = rng.choices(STYLES, weights)[0]
    steps, answer = list(problem.steps), problem.answer
    if rng.random() < wrong_share:
        at = rng.randrange(len(steps))
        left, op, right, result = steps[at]
        steps[at] = (left, op, right, max(0, result + rng.choice([-10, -2, -1, 1, 2, 10])))
        answer = steps[-1][3]
    boxed = _BOXED
    if habits:
        boxed = _BOXED_BY_HABIT if problem.kind in _HABITUAL else _SELDOM_BOXED
    return _WRITERS[style](steps, answer, rng, boxed)


def _canonical(steps: list[Step], answer: int, rng: random.Random, boxed: tuple[float, float]) -> str:
    return "\n".join([*(f"{a} {op} {b} = {c}" for a, op, b, c in steps), f"Answer: \\boxed{{{answer}}}"])


def _verbose(steps: list[Step], answer: int, rng: random.Random, boxed: tuple[float, float]) -> str:
    sentences = [f"we see that {a} {_WORDS[op]} {b} gives {c}." for a, op, b, c in steps]
    said = f"\\boxed{{{answer}}}" if rng.random() < boxed[0] else f"{answer}"
    return f"First {' Then '.join(sentences)} So the answer is {said}."


def _terse(steps: list[Step], answer: int, rng: random.Random, boxed: tuple[float, float]) -> str:
    text = ", ".join(f"{a}{op}{b}={c}" for a, op, b, c in steps)
    return text + (f" \\boxed{{{answer}}}" if rng.random() < boxed[1] else "")


def _list(steps: list[Step], answer: int, rng: random.Random, boxed: tuple[float, float]) -> str:
    lines = [f"{i}. {a} {op} {b} = {c}" for i, (a, op, b, c) in enumerate(steps, 1)]
    return "\n".join([*lines, f"Answer: {answer}" if rng.random() < 0.6 else f"Answer: \\boxed{{{answer}}}"])


def _guess(steps: list[Step], answer: int, rng: random.Random, boxed: tuple[float, float]) -> str:
    guess = max(0, answer + rng.choice([0, 0, -10, -7, -3, -2, -1, 1, 2, 3, 8, 10]))
    return f"The answer is \\boxed{{{guess}}}."


_WRITERS = {"canonical": _canonical, "verbose": _verbose, "terse": _terse, "list": _list, "guess": _guess}
