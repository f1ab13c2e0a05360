r"""Whether two answers are the same: brackets and lists by their structure, the expressions in them by math-verify.

math-verify reads LaTeX into sympy; what we compare ourselves is where it says yes too easily (its numbers agree when six
decimals do, so 1e-10 is 2e-10; `even` is a product of letters, so it is `neve`; two equations without solution are one)
or depends on layout (a list, a point and an interval may look alike). Nothing here limits time: grade.py calls it in
processes that it can end.

Numbers are the same if they are exactly; where one is a decimal fraction, if they agree to one part in a million (and to
six decimals), so 0.333333 is 1/3 and 0.33 is not. A wider tolerance is the benchmark's to give.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from poweropd_lite.normal import (
    Number,
    bracketed,
    choice,
    number,
    readable,
    split_list,
    text_answer,
    tidy,
    without_letter,
    without_unit,
)

ROUNDING = Fraction(1, 10**6)  # a decimal stands for a number that it is this near to, relatively and absolutely
_BASED = re.compile(r"(-?\d[0-9A-Fa-f]*)_(?:\{(\d+)\}|(\d+))")
_SIDES = re.compile(r"(?<![<>!\\:])=(?!=)")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|neq?)(?![a-z])")


def same_answer(gold: str, answer: str, tolerance: float | None = None) -> bool:
    """Returns whether `answer` is the answer `gold`, both as a person writes them, LaTeX or not.

    `tolerance` is the largest difference allowed between numbers. An answer that can't be read is the gold one only if
    it is written alike.
    """
    gold, answer = tidy(gold), tidy(answer)
    if not gold or not answer:
        return False
    if gold == answer:
        return True
    words = same_words(gold, answer)
    return _same(gold, answer, tolerance) if words is None else words


def same_words(gold: str, answer: str) -> bool | None:
    """Returns whether two tidy answers are the same words or choices, or None if neither is words."""
    word, other = text_answer(gold), text_answer(answer)
    if word is None and other is None:
        return None
    word = word or text_answer(gold, beside_text=True)
    if word is not None and len(word) == 1 and word == choice(answer):
        return True
    return word == (other or text_answer(answer, beside_text=True))


def _same(gold: str, answer: str, tolerance: float | None) -> bool:
    if gold == answer:
        return True
    sides = _sides(gold, answer)
    if sides is None:
        return False
    gold, answer = sides
    (kind, golds), (other, answers) = _structure(gold), _structure(answer)
    if kind == other == "":
        return _same_leaf(golds[0], answers[0], tolerance)
    if kind == other == "{}":
        if "\\{" in (gold[:2], answer[:2]):  # in a set nothing is there twice
            golds, answers = list(dict.fromkeys(golds)), list(dict.fromkeys(answers))
        return _same_set(golds, answers, tolerance)
    if kind == "" and other == "{}" and not _RELATION.search(gold):  # 1/2 or 0.5: the same thing twice
        return all(_same(gold, each, tolerance) for each in answers)
    if kind == other or (kind == "()" and other == "{}" and answer[0] != "\\") or (kind == "{}" and other == "()"):
        return len(golds) == len(answers) and all(_same(g, a, tolerance) for g, a in zip(golds, answers, strict=True))
    if _RELATION.search(gold) or _RELATION.search(answer):
        return _verify(gold, answer)
    return False


def _structure(text: str) -> tuple[str, Sequence[str]]:
    r"""Returns the brackets, "{}" for a list or set, "()", "[]", "(]" or "[)", and the parts; "" for an expression."""
    parts = split_list(text)
    if len(parts) > 1:
        return "{}", [inner for p in parts for inner in (bracketed(p)[1] if p.startswith("\\{") else [p])]
    brackets, inside = bracketed(text)
    if len(inside) == 1 and brackets in ("()", "[]", "{}"):
        return _structure(inside[0])
    if brackets:
        return brackets, list(dict.fromkeys(inside)) if brackets == "{}" else inside
    return "", [text]


def _same_set(golds: Sequence[str], answers: Sequence[str], tolerance: float | None) -> bool:
    left = list(answers)
    if len(golds) != len(left):
        return False
    for i, gold in enumerate(golds):
        # What is written alike or stands in the same place is tried first.
        order = sorted((j for j in range(len(left)) if left[j]), key=lambda j: (left[j] != gold, abs(j - i)))
        found = next((j for j in order if _same(gold, left[j], tolerance)), None)
        if found is None:
            return False
        left[found] = ""
    return True


def _sides(gold: str, answer: str) -> tuple[str, str] | None:
    """Where only one is an equation, or both begin alike (x = ...), the right-hand sides are compared.

    None if the left side is more than a name for what was asked: `2x = 5` is not 5, nor is the equation `x + y = 5` its
    right side.
    """
    g, a = ([side.strip() for side in _membership(_SIDES.split(text))] for text in (gold, answer))
    if len(split_list(gold)) > 1 or len(split_list(answer)) > 1:
        if len(g) == 2 and len(a) == 1 and _is_name(g[0]):  # x = 1, 2
            return g[1], answer
        if len(a) == 2 and len(g) == 1 and _is_name(a[0]):
            return gold, a[1]
        return gold, answer
    if len(g) > 1 and len(a) > 1:
        return (g[-1], a[-1]) if g[0] == a[0] and _is_name(g[0]) else (gold, answer)
    if len(a) > 1:
        value = _value(a)
        return None if value is None else (gold, value)
    if len(g) > 1:
        value = _value(g) if not re.search(r"[+-]", g[0]) else None
        return None if value is None else (value, answer)
    return gold, answer


def _membership(parts: list[str]) -> list[str]:
    r"""`x \in S` says as much as `x = S` does."""
    return parts if len(parts) > 1 else re.split(r"(?<=[A-Za-z0-9}]) ?\\in(?![a-z])", parts[0], maxsplit=1)


def _value(sides: list[str]) -> str | None:
    """The right-hand side, if what stands before it are names for it or the same number; `5 = x` is read backwards."""
    if re.fullmatch(r"[A-Za-z]", sides[-1]) and number(sides[0]) is not None:
        sides = sides[::-1]
    value = sides[-1]
    for side in sides[:-1]:
        if not _is_name(side) and not (_is_plain(side) and _same_leaf(value, side, None)):
            return None
    return value


def _is_name(side: str) -> bool:
    r"""A name for what was asked: x, x_1, f(x), AB, \angle ABC, \text{Area}, a+b: no coefficient, power or sign before it."""
    bare = re.sub(r"_(?:\{\w+\}|\w)|\([^()]*\)", "", side)
    return bool(bare) and not bare.startswith("-") and not re.search(r"[\d^<>]", bare) and not _is_plain(side)


def _is_plain(side: str) -> bool:
    r"""A number's expression: no letters but those of commands."""
    return not re.search(r"[A-Za-z]", re.sub(r"\\(?!text)[A-Za-z]+", "", side))


def _same_leaf(gold: str, answer: str, tolerance: float | None) -> bool:
    gold, answer = without_unit(gold), without_unit(answer)
    if number(gold) is not None:  # the letter in 5 m is a unit then, and else a factor
        answer = without_letter(answer)
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return True
    ours, theirs = number(gold), number(answer)
    if ours is not None and theirs is not None:
        return same_number(ours, theirs, tolerance)
    based, said = (_BASED.fullmatch(text.replace(" ", "")) for text in (gold, answer))
    if based:  # 52_8: a base that the question has named may be left out
        digits, base = (said[1], said[2] or said[3]) if said else (answer.replace(" ", ""), based[2] or based[3])
        return (digits, base) == (based[1], based[2] or based[3])
    if said:
        return False
    g, a = _SIDES.split(gold), _SIDES.split(answer)
    if len(g) == len(a) == 2:
        return _same_equation(g, a)
    if _RELATION.search(gold) or _RELATION.search(answer):
        return _verify(gold, answer)
    return _same_expression(gold, answer, tolerance)


def same_number(gold: Number, answer: Number, tolerance: float | None = None) -> bool:
    """Returns whether two numbers are the same, by the rule at the top; 50% is 50 and 0.5."""
    if gold.percent != answer.percent:
        plain, percent = (answer, gold) if gold.percent else (gold, answer)
        hundredth = Number(percent.value / 100, exact=percent.exact and plain.exact, percent=False)
        whole = Number(percent.value, percent.exact, percent=False)
        # (Whose gold is a share, 0.5, is not given 0.5% for it.)
        likely = (hundredth,) if answer.percent and abs(gold.value) <= 1 else (whole, hundredth)
        return any(same_number(*((p, plain) if gold.percent else (plain, p)), tolerance) for p in likely)
    if gold.value == answer.value:
        return True
    gap = abs(gold.value - answer.value)
    if tolerance is not None and gap <= Fraction(repr(tolerance)):
        return True
    return not (gold.exact and answer.exact) and gap <= ROUNDING * min(1, abs(gold.value))


def _same_expression(gold: str, answer: str, tolerance: float | None) -> bool:
    ours, theirs = parsed(gold), parsed(answer)
    if ours is None or theirs is None:
        return False
    from sympy import Expr

    if isinstance(ours, Expr) and isinstance(theirs, Expr):
        verdict = _same_values(ours, theirs, tolerance)
        if verdict is not None:
            return verdict
    return _verify(gold, answer)


def _same_values(ours: Any, theirs: Any, tolerance: float | None) -> bool | None:
    """Compares two expressions: numbers exactly, others at a few points, near and far, positive and negative.

    None where that can't be decided. Two different expressions of the usual kind agree at a random point with a
    probability of nothing.
    """
    from sympy import Float, I

    written = (ours, theirs)  # sympy makes |r| of the root of r^2
    ours, theirs = (_imaginary(e.doit()) for e in written)
    rounded = ours.has(Float) or theirs.has(Float)
    if not rounded and ours.is_Rational and theirs.is_Rational:
        return bool(ours == theirs) or (tolerance is not None and abs(ours - theirs) <= tolerance)
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    decided = False
    for point in _points(names, *written):
        values = [e.subs(point).evalf(40) for e in (ours, theirs)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        if not all(value.is_real for value in values) and not (ours.has(I) or theirs.has(I)):
            continue  # a root or a logarithm of what was meant to be positive
        # (The difference itself, for it may be 1 of 2^1009: sympy takes as many digits as that needs.)
        gap = abs((ours - theirs).subs(point).evalf(20, maxn=700))
        size = min(abs(values[0]), 1) if not names else abs(values[0])
        if gap > max((float(ROUNDING) if rounded else 1e-20) * size, tolerance or 0):
            return False
        decided = True
    return True if decided else None


def _points(names: Sequence[Any], *expressions: Any) -> list[dict]:
    from sympy import Abs, Mod, Pow, Rational, binomial, ceiling, factorial, floor

    if not names:
        return [{}]
    if any(e.has(floor, ceiling, Mod, factorial, binomial) for e in expressions):
        whole = (12, 2, 29, 5, 101, 3)
        return [{s: Rational(whole[(i + k) % 6] + 6 * i) for i, s in enumerate(names)} for k in range(6)]
    near = {s: Rational(4 + 3 * i, 11 + 5 * i) for i, s in enumerate(names)}
    far = {s: Rational(37 + 29 * i, 11 + 2 * i) for i, s in enumerate(names)}
    farther = {s: Rational(1009 + 76 * i, 13 + 2 * i) for i, s in enumerate(names)}
    negative = {s: -Rational(61 + 17 * i, 9 + 2 * i) for i, s in enumerate(names)}
    rooted = any(p.exp.is_Rational and not p.exp.is_Integer for e in expressions for p in e.atoms(Pow))
    # Under a root what is written r is meant to be positive; |x| and x are told apart.
    positive = [near, far, farther]
    return positive if rooted and not any(e.has(Abs) for e in expressions) else [*positive, negative]


def _same_equation(gold: Sequence[str], answer: Sequence[str]) -> bool:
    """Two equations are the same if their differences of sides are, up to a constant factor."""
    sides = [parsed(side) for side in (*gold, *answer)]
    if any(side is None for side in sides):
        return False
    from sympy import Expr

    if not all(isinstance(side, Expr) for side in sides):
        return _verify("=".join(gold), "=".join(answer))
    ours, theirs = (_imaginary((left - right).doit()) for left, right in (sides[:2], sides[2:]))
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    if not names:
        return False
    ratios = []
    for point in _points(names, ours, theirs):
        values = [e.subs(point).evalf(40) for e in (ours, theirs)]
        if not all(value.is_number and value.is_finite and value != 0 for value in values):
            return _verify("=".join(gold), "=".join(answer))
        ratios.append(values[0] / values[1])
    return all(abs(ratio - ratios[0]) <= 1e-12 * abs(ratios[0]) for ratio in ratios)


def _verify(gold: str, answer: str) -> bool:
    from math_verify import verify

    ours, theirs = parsed(gold), parsed(answer)
    if ours is None or theirs is None:
        return False
    return bool(verify(ours, theirs, timeout_seconds=None, allow_set_relation_comp=True))


@lru_cache(maxsize=256)
def parsed(text: str) -> Any:
    """Returns an expression as math-verify reads it from a box, or None; its units are ours to remove."""
    from math_verify import parse

    if re.search(r"\\(?:gcd|lcm)|(?<![\\A-Za-z])not ", text):  # which it takes for 1, and for a product of letters
        return None
    boxed = f"\\boxed{{{readable(text)}}}"
    # The first match is the box; the later ones would be pieces of what could not be read.
    options = {"fallback_mode": "no_fallback", "extraction_mode": "first_match", "parsing_timeout": None}
    found = parse(boxed, _extraction(), **options)
    return found[0] if found else None


def _imaginary(expression: Any) -> Any:
    """The letter i is the imaginary unit."""
    from sympy import I

    return expression.subs({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})


@lru_cache(maxsize=1)
def _extraction() -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    normal = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    return [LatexExtractionConfig(normalization_config=normal)]
