"""Synthetic word problems with worked steps: what the bundled pair is trained, distilled and evaluated on.

Eight kinds of two- to five-step arithmetic. A problem belongs to the training or the held-out split by a hash of its
question, so no question that is ever evaluated has been seen in training, by either model, whatever the seeds.
"""

import hashlib
import itertools
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

Step = tuple[int, str, int, int]  # left, operator, right, result


@dataclass(frozen=True)
class Problem:
    """One question, the equations that solve it in order, and its answer (an integer)."""

    kind: str
    question: str
    steps: tuple[Step, ...]
    answer: int

    @property
    def solution(self) -> str:
        """The worked answer that the teacher is trained to give: an equation a line, then the boxed answer."""
        return "".join(f"{a} {op} {b} = {c}\n" for a, op, b, c in self.steps) + f"Answer: \\boxed{{{self.answer}}}"

    @property
    def held_out(self) -> bool:
        """Whether this question is kept for evaluation, as one in eight is; a function of its text alone."""
        return hashlib.sha256(self.question.encode()).digest()[0] % 8 == 0


def _apply(a: int, op: str, b: int) -> Step:
    return a, op, b, _OPERATORS[op](a, b)


def _chain(rng: random.Random) -> tuple[str, list[Step]]:
    total = rng.randint(10, 99)
    text, steps = f"{total}", []
    for _ in range(rng.randint(2, 4)):
        term = rng.randint(3, 60)
        op = "-" if term <= total and (total > 120 or rng.random() < 0.5) else "+"
        steps.append(_apply(total, op, term))
        text, total = f"{text} {op} {term}", steps[-1][3]
    return f"Compute {text}.", steps


def _two_products(a: int, b: int, c: int, d: int, op: str = "+") -> list[Step]:
    first, second = _apply(a, "*", b), _apply(c, "*", d)
    return [first, second, _apply(first[3], op, second[3])]


def _products(rng: random.Random) -> tuple[str, list[Step]]:
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 12)
    op = "-" if a * b >= c * d and rng.random() < 0.6 else "+"
    return f"Compute {a} * {b} {op} {c} * {d}.", _two_products(a, b, c, d, op)


def _linear(rng: random.Random) -> tuple[str, list[Step]]:
    a, x, b, c = rng.randint(2, 9), rng.randint(2, 15), rng.randint(3, 60), rng.randint(2, 40)
    total = a * x + b
    steps = [_apply(total, "-", b), _apply(a * x, "/", a), _apply(x, "+", c)]
    return f"If {a}x + {b} = {total}, what is x + {c}?", steps


def _modular(rng: random.Random) -> tuple[str, list[Step]]:
    a, b, c, m = rng.randint(2, 9), rng.randint(2, 12), rng.randint(3, 60), rng.randint(3, 9)
    total = a * b + c
    multiple = _apply(m, "*", total // m)
    steps = [_apply(a, "*", b), _apply(a * b, "+", c), multiple, _apply(total, "-", multiple[3])]
    return f"What is the remainder when {a} * {b} + {c} is divided by {m}?", steps


def _shop(rng: random.Random) -> tuple[str, list[Step]]:
    name = rng.choice(["Tom", "Ana", "Li", "Sam", "Eva", "Max"])
    (one, other) = rng.sample(["pens", "books", "cups", "hats", "apples", "toys"], 2)
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 12)
    steps = _two_products(a, b, c, d)
    note = 100 if steps[-1][3] <= 100 else 200 if steps[-1][3] <= 200 else 300
    steps.append(_apply(note, "-", steps[-1][3]))
    question = f"{name} buys {a} {one} at {b} dollars each and {c} {other} at {d} dollars each, and pays with {note} "
    question += f"dollars. How much change does {name} get?"
    return question, steps


def _sequence(rng: random.Random) -> tuple[str, list[Step]]:
    start, gap, n = rng.randint(1, 60), rng.randint(2, 9), rng.randint(4, 13)
    last = (n - 1) * gap
    steps = [_apply(start + gap, "-", start), _apply(n, "-", 1), _apply(n - 1, "*", gap), _apply(last, "+", start)]
    return f"A sequence starts {start}, {start + gap}, {start + 2 * gap}. What is term {n}?", steps


def _rectangle(rng: random.Random) -> tuple[str, list[Step]]:
    width, length, gate = rng.randint(3, 40), rng.randint(3, 40), rng.randint(1, 9)
    steps = [_apply(width, "+", length), _apply(width + length, "*", 2), _apply(2 * (width + length), "-", gate)]
    return f"A garden is {width} by {length} metres. How long is its fence, less a gate of {gate} metres?", steps


def _travel(rng: random.Random) -> tuple[str, list[Step]]:
    vehicle = rng.choice(["bus", "train", "boat", "truck"])
    a, b, c, d = rng.randint(10, 30), rng.randint(2, 4), rng.randint(10, 30), rng.randint(2, 4)
    question = f"A {vehicle} goes {a} km an hour for {b} hours, then {c} km an hour for {d} hours. How far does it go?"
    return question, _two_products(a, b, c, d)


_MAKERS = (_chain, _products, _linear, _modular, _shop, _sequence, _rectangle, _travel)
KINDS: dict[str, Callable[[random.Random], tuple[str, list[Step]]]] = {make.__name__[1:]: make for make in _MAKERS}


def problems(seed: int, count: int, held_out: bool) -> list[Problem]:
    """Returns `count` distinct problems of one split, every kind in turn, in an order fixed by `seed`."""
    rng = random.Random(seed)
    seen: dict[str, Problem] = {}
    for kind in itertools.islice(itertools.cycle(KINDS), count):
        while True:
            question, steps = KINDS[kind](rng)
            problem = Problem(kind, question, tuple(steps), steps[-1][3])
            if problem.held_out == held_out and question not in seen:
                break
        seen[question] = problem
    return list(seen.values())
