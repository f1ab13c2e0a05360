r"""Whether two expressions are the same: read by math-verify, compared at points by us.

math-verify says yes too easily: 2^1009 is 2^1009 + 1, two equations without solution are one, dx/dt is 0. So numbers are
compared exactly, expressions at several points, equations up to a factor; its own comparison gets what is left, such as
matrices and inequalities. Nothing here limits time: judges.py does.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from poweropd_lite.grade.quantity import ROUNDING

_LETTER = re.compile(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+|([A-Za-z])(?:_(?:\{(\w+)\}|(\w)))?")
_GAMMA = re.compile(r"\\gamma(?![a-z])(?:_(?:\{(\w+)\}|(\w)))?")
_NAMED = r"(\\[a-z]+|[A-Za-z])(?:_(?:\{(\w+)\}|(\w)))?"
_RATE = re.compile(rf"\\frac ?\{{ ?d ?{_NAMED} ?\}} ?\{{ ?d ?([a-z]) ?\}}|\\frac ?\{{ ?d ?\^ ?\{{?2\}}? ?{_NAMED} ?\}} ?\{{ ?d ?([a-z]) ?\^ ?\{{?2\}}? ?\}}|(?<![\w\\])d{_NAMED} ?/ ?dt\b")  # fmt: skip
_DOT = re.compile(rf"\\(d?)dot ?(?:\{{ ?{_NAMED} ?\}}| ?{_NAMED})")
_PRIMED = re.compile(rf"{_NAMED}(?:('{{1,3}})|\^ ?\{{? ?((?:\\prime ?){{1,3}})\}}?)")


def same_expression(gold: str, answer: str, tolerance: float | None) -> bool:
    ours, theirs = parsed(gold), parsed(answer)
    if ours is None or theirs is None:
        return False
    from sympy import Expr

    if isinstance(ours, Expr) and isinstance(theirs, Expr):
        verdict = _same_values(ours, theirs, tolerance)
        if verdict is not None:
            return verdict
    return verified(gold, answer)


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
        size = max(map(abs, values))
        size = min(size, 1) if not names else size
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


def same_equation(gold: Sequence[str], answer: Sequence[str]) -> bool:
    """Two equations are the same if their differences of sides are, up to a constant factor."""
    sides = [parsed(side) for side in (*gold, *answer)]
    if any(side is None for side in sides):
        return False
    from sympy import Expr

    if not all(isinstance(side, Expr) for side in sides):
        return verified("=".join(gold), "=".join(answer))
    ours, theirs = (_imaginary((left - right).doit()) for left, right in (sides[:2], sides[2:]))
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    if not names:
        return False
    ratios = []
    for point in _points(names, ours, theirs):
        values = [e.subs(point).evalf(40) for e in (ours, theirs)]
        if not all(value.is_number and value.is_finite and value != 0 for value in values):
            return verified("=".join(gold), "=".join(answer))
        ratios.append(values[0] / values[1])
    return all(abs(ratio - ratios[0]) <= 1e-12 * abs(ratios[0]) for ratio in ratios)


def verified(gold: str, answer: str) -> bool:
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


def readable(text: str) -> str:
    r"""Returns an expression as math-verify reads it right.

    It lowers every letter, which would make 1 of R/r: a letter that is there as R and r gets an index as R. E with an
    index is a name, and \gamma a letter, not Euler's constants. It takes y' for y and dx/dt for 0: derivatives get names.
    """
    text = _RATE.sub(_named_rate, text)
    text = _DOT.sub(lambda m: _indexed(m[2] or m[5], m[3] or m[4] or m[6] or m[7], 2 if m[1] else 1), text)
    text = _PRIMED.sub(lambda m: _indexed(m[1], m[2] or m[3], len(m[4]) if m[4] else m[5].count("prime")), text)
    text = re.sub(r"([A-Za-z0-9])!(?=\^)", r"(\1!)", text)
    text = _GAMMA.sub(lambda m: f"g_{{97{m[1] or m[2] or ''}}} ", text)
    letters = {found[1] for found in _LETTER.finditer(text) if found[1]}
    both = {letter for letter in letters if letter.isupper() and letter.lower() in letters}

    def named(found: re.Match) -> str:
        letter, index = found[1], found[2] or found[3] or ""
        if letter == "E" and (index or letter in both):
            return f"k_{{95{index}}} "
        return f"{letter.lower()}_{{96{index}}} " if letter in both else found[0]

    return _LETTER.sub(named, text)


def _named_rate(found: re.Match) -> str:
    names = found.groups()
    for start, order in ((0, 1), (4, 2), (8, 1)):
        if names[start]:
            by = (names[start + 3] if start < 8 else "t").replace("t", "").replace("x", "")  # as a dot or a prime means
            return _indexed(names[start], (names[start + 1] or names[start + 2] or "") + by, order)
    return found[0]


def _indexed(name: str, index: str | None, order: int) -> str:
    return f"{name}_{{{index or ''}90{order}}} "
