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
    distinct_letters,
    number,
    split_list,
    text_answer,
    tidy,
    without_letter,
    without_unit,
)

ROUNDING = Fraction(1, 10**6)  # a decimal stands for a number that it is this near to, relatively and absolutely
_SUBSCRIPTED = re.compile(r"([0-9A-Za-z]+)_(?:\{(\d+)\}|(\d+))")
_SIDES = re.compile(r"(?<![<>!\\:])=(?!=)")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|leqslant|geqslant|neq?)(?![a-z])")


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
    if words is not None:
        return words
    return any(_same(g, a, tolerance) for g in _readings(gold) for a in _readings(answer))


def same_words(gold: str, answer: str) -> bool | None:
    """Returns whether two tidy answers are the same words, or None if neither is words."""
    word, other = text_answer(gold), text_answer(answer)
    if word is None and other is None:
        return None
    return (word or text_answer(gold, beside_text=True)) == (other or text_answer(answer, beside_text=True))


def _readings(text: str) -> list[str]:
    """A comma between groups of three digits may divide thousands or a list."""
    grouped = re.sub(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])", lambda m: m[1].replace(",", ""), text)
    return [text] if grouped == text or bracketed(text)[0] else [grouped, text]


def _same(gold: str, answer: str, tolerance: float | None) -> bool:
    if gold == answer:
        return True
    gold, answer = _sides(gold, answer)
    (kind, golds), (other, answers) = _structure(gold), _structure(answer)
    if kind == other == "":
        return _same_leaf(golds[0], answers[0], tolerance)
    if kind == other == "{}":
        return _same_set(golds, answers, tolerance)
    if kind == other or (kind == "()" and other == "{}" and answer[0] != "\\") or (kind == "{}" and other == "()"):
        return len(golds) == len(answers) and all(_same(g, a, tolerance) for g, a in zip(golds, answers, strict=True))
    if _RELATION.search(gold) or _RELATION.search(answer):
        return _verify(gold, answer)
    return False


def _structure(text: str) -> tuple[str, Sequence[str]]:
    r"""Returns the brackets, "{}" for a list or set, "()", "[]", "(]" or "[)", and the parts; "" for an expression."""
    parts = split_list(text)
    if len(parts) > 1:
        flat = [inner for part in parts for inner in (bracketed(part)[1] if part.startswith("\\{") else [part])]
        return "{}", list(dict.fromkeys(flat))
    brackets, inside = bracketed(text)
    if len(inside) == 1 and brackets in ("()", "[]", "{}"):
        return _structure(inside[0])
    if brackets:
        return brackets, list(dict.fromkeys(inside)) if brackets == "{}" else inside
    return "", [text]


def _same_set(golds: Sequence[str], answers: Sequence[str], tolerance: float | None) -> bool:
    left = list(answers)
    for i, gold in enumerate(golds):
        # What stands in the same place is tried first.
        order = sorted(range(len(left)), key=lambda j: (left[j] != gold, abs(j - i)))
        found = next((j for j in order if _same(gold, left[j], tolerance)), None)
        if found is None:
            return False
        left.pop(found)
        left.insert(found, "")  # the others keep their places
    return not any(left)


def _sides(gold: str, answer: str) -> tuple[str, str]:
    """Where only one of them is an equation, or both begin alike (x = ...), the right-hand sides are compared."""
    g, a = ([side.strip() for side in _membership(_SIDES.split(text))] for text in (gold, answer))
    if len(split_list(gold)) > 1 or len(split_list(answer)) > 1:
        head = g[0] if len(g) == 2 and "," not in g[0] else None  # x = 1, 2
        if head is not None and len(a) == 1:
            return g[1], answer
        head = a[0] if len(a) == 2 and "," not in a[0] else None
        return (gold, a[1]) if head is not None and len(g) == 1 else (gold, answer)
    if len(g) > 1 and len(a) > 1 and g[0] == a[0]:
        return g[-1], a[-1]
    if len(a) > 1 and len(g) == 1:
        return gold, _value(a)
    if len(g) > 1 and len(a) == 1:
        return _value(g), answer
    return gold, answer


def _membership(parts: list[str]) -> list[str]:
    r"""`x \in S` says as much as `x = S` does."""
    return parts if len(parts) > 1 else re.split(r"(?<=[A-Za-z0-9}])\s*\\in(?![a-z])", parts[0], maxsplit=1)


def _value(sides: list[str]) -> str:
    """The side that is not just a name: the last, or in `5 = x` the first."""
    return sides[0] if re.fullmatch(r"[A-Za-z]", sides[-1]) and number(sides[0]) is not None else sides[-1]


def _same_leaf(gold: str, answer: str, tolerance: float | None) -> bool:
    gold, answer = without_unit(gold), without_unit(answer)
    if number(gold) is not None:  # the letter in 5 m is a unit then, and else a factor
        answer = without_letter(answer)
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return True
    ours, theirs = number(gold), number(answer)
    if ours is not None and theirs is not None:
        return same_number(ours, theirs, tolerance)
    based = _SUBSCRIPTED.fullmatch(gold.replace(" ", ""))
    if (
        based and based[1].isalnum() and not based[1].isalpha()
    ):  # 52_8: a base that the question has named may be left out
        said = _SUBSCRIPTED.fullmatch(answer.replace(" ", ""))
        digits, base = (said[1], said[2] or said[3]) if said else (answer.replace(" ", ""), based[2] or based[3])
        return (digits, base) == (based[1], based[2] or based[3])
    if _SUBSCRIPTED.fullmatch(answer.replace(" ", "")) and ours is not None:
        return False
    if len(_SIDES.split(gold)) == 2 and len(_SIDES.split(answer)) == 2:
        return _same_equation(_SIDES.split(gold), _SIDES.split(answer))
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
    """Compares two expressions at a few points, positive and negative; None where that can't be decided.

    Two different expressions of the usual kind agree at a random point with a probability of nothing.
    """
    from sympy import Float, Integer, Rational

    ours, theirs = (_imaginary(e.doit()) for e in (ours, theirs))
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    rounded = ours.has(Float) or theirs.has(Float)
    near = float(ROUNDING) if rounded else 1e-20
    decided = False
    for sign in (1, 1, -1) if names else (1,):
        point = {s: Rational(sign * (7 + 5 * i + 3 * sign), 11 + 2 * i) for i, s in enumerate(names)}
        values = [expression.subs(point).evalf(40) for expression in (ours, theirs)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        if sign < 0 and not all(value.is_real for value in values):
            continue  # a root or a logarithm of what was meant to be positive
        gap, size = abs(values[0] - values[1]), abs(values[0])
        allowed = max(near * min(size, Integer(1) if rounded and not names else size), tolerance or 0)
        if gap > allowed:
            return False
        decided = True
    return True if decided else None


def _same_equation(gold: Sequence[str], answer: Sequence[str]) -> bool:
    """Two equations are the same if their differences of sides are, up to a constant factor."""
    sides = [parsed(side) for side in (*gold, *answer)]
    if any(side is None for side in sides):
        return False
    from sympy import Expr, Rational

    if not all(isinstance(side, Expr) for side in sides):
        return _verify("=".join(gold), "=".join(answer))
    ours, theirs = (sides[0] - sides[1]).doit(), (sides[2] - sides[3]).doit()
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    ratios = []
    for k in range(3):
        point = {s: Rational(7 + 5 * i + 3 * k * k, 11 + 2 * i + k) for i, s in enumerate(names)}
        values = [expression.subs(point).evalf(40) for expression in (ours, theirs)]
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

    boxed = f"\\boxed{{{distinct_letters(text)}}}"
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
