r"""Whether two answers are the same: by the structure of lists, sets, points and intervals, then part by part.

algebra.py compares the expressions in them, quantity.py the numbers. math-verify would read the structure too, but from
the layout: a list, a point and an interval may look alike, and `even` is a product of letters, so it is `neve`.

Numbers are the same if they are exactly; where one is a decimal fraction, if they agree to one part in a million (and to
six decimals), so 0.333333 is 1/3 and 0.33 is not. A wider tolerance is the benchmark's to give.
"""

import re
from collections.abc import Sequence

from poweropd_lite.grade.algebra import same_equation, same_expression, verified
from poweropd_lite.grade.normal import bracketed, choice, split_list, text_answer, tidy
from poweropd_lite.grade.parts import conditioned, has_inner_sides, lines, sides, table
from poweropd_lite.grade.quantity import number, same_number, without_letter, without_unit

_BASED = re.compile(r"(-?\d[0-9A-Fa-f]*)_(?:\{(\d+)\}|(\d+))")
# 12 345 and 6.674 30, and no mixed number.
_GROUPED = re.compile(r"(?:(?<![\d^_.])(?<![\d^_] )\d{1,3}(?: \d{3})+|\.\d{3}(?: \d{3})* \d{1,3})(?! ?[\d/])")
_TWO_DIGITS = re.compile(r"(\\(?:frac|[dt]?binom) ?\d) (?=\d)")  # \frac 1 2
_IDLE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
# What math-verify adds or multiplies: 1 2 would be 3, and 1 2 3 be 6. (2^2 3 is a product.)
_SIDE_BY_SIDE = re.compile(r"(?<![\d^_])\d+ \d")
_CONDITION_WORD = re.compile(r"\b(?:if|when)\b")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|neq?)(?![a-z])")


def same_answer(gold: str, answer: str, tolerance: float | None = None) -> bool:
    """Returns whether `answer` is the answer `gold`, both as a person writes them, LaTeX or not.

    `tolerance` is the largest difference allowed between numbers. An answer that can't be read is the gold one only if
    it is written alike.
    """
    gold, answer = tidy(gold), tidy(answer)
    read = same_as_written(gold, answer)
    return _same(gold, answer, tolerance) if read is None else read


def same_as_written(gold: str, answer: str) -> bool | None:
    """Returns what two tidy answers are by reading alone: empty ones and words are decided; None where it takes more."""
    if not gold or not answer:
        return False
    return True if gold == answer else same_words(gold, answer)


def same_words(gold: str, answer: str) -> bool | None:
    """Returns whether two tidy answers are the same words or choices, or None if neither is words."""
    word, other = text_answer(gold), text_answer(answer)
    if letter := _chosen(gold):
        said = _chosen(answer) or text_answer(answer, beside_text=True) or ""
        if len(said) == 1:
            return said == letter
    if re.fullmatch("[A-J]", gold) and (letter := _chosen(answer)):
        return letter == gold.lower()
    if word is None and other is None:
        return None
    word = word or text_answer(gold, beside_text=True)
    if word is not None and len(word) == 1 and word == choice(answer):
        return True
    return word == (other or text_answer(answer, beside_text=True))


def _chosen(text: str) -> str | None:
    """The letter of one choice that is written as one, `(A) 5`, `A) 5` or `A. 5`; a bare letter is none."""
    written = re.match(r"(?:\\text ?\{)? ?(?:\([A-J]\)|[A-J][).:]) ?\}?", text)
    return (
        choice(text)
        if written and len(split_list(text)) == 1 and not re.search(r"\([A-J]\)", text[written.end() :])
        else None
    )


def _same(gold: str, answer: str, tolerance: float | None) -> bool:
    gold, answer = (one[0] if len(one := lines(text)) == 1 else text for text in (gold, answer))
    if gold == answer:
        return True
    golds_rows, answers_rows = table(gold), table(answer)
    if golds_rows and answers_rows and any(len(row) > 1 for row in (*golds_rows, *answers_rows)):
        return _same_rows(golds_rows, answers_rows, tolerance)
    if _CONDITION_WORD.search(gold) and _CONDITION_WORD.search(answer):
        (bare_gold, if_gold), (bare_answer, if_answer) = conditioned(gold), conditioned(answer)
        if if_gold and if_answer:
            return _same(bare_gold, bare_answer, tolerance) and _same(if_gold, if_answer, None)
    pair = _sides(gold, answer)
    if pair is None:
        return False
    if pair != (gold, answer):
        return _same(*pair, tolerance)
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
        return verified(gold, answer)
    return False


def _structure(text: str) -> tuple[str, Sequence[str]]:
    r"""Returns the brackets, "{}" for a list or set, "()", "[]", "(]" or "[)", and the parts; "" for an expression."""
    if (rows := table(text)) and all(len(row) == 1 for row in rows):
        return "{}", [row[0] for row in rows]
    parts = [part for line in lines(text) for part in split_list(line)]
    if len(parts) > 1:
        return "{}", [inner for p in parts for inner in (bracketed(p)[1] if p.startswith("\\{") else [p])]
    brackets, inside = bracketed(text)
    if len(inside) == 1 and brackets in ("()", "[]", "{}"):
        return _structure(inside[0])
    if brackets:
        return brackets, list(dict.fromkeys(inside)) if brackets == "{}" else inside
    return "", [text]


def _same_rows(golds: list[list[str]], answers: list[list[str]], tolerance: float | None) -> bool:
    """Pieces of a function: each value with its condition, in any order."""
    left = list(answers)
    for gold in golds:
        same = (
            row
            for row in left
            if len(row) == len(gold) and all(_same(g, a, tolerance) for g, a in zip(gold, row, strict=True))
        )
        if (found := next(same, None)) is None:
            return False
        left.remove(found)
    return not left


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
    if len(lines(gold)) > 1 or len(lines(answer)) > 1:
        return gold, answer
    g, a = ([side.strip() for side in _membership(sides(text))] for text in (gold, answer))
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
    kind, names = bracketed(side)
    if kind == "()" and len(names) > 1:  # (x, y) = (3, 4)
        return all(re.fullmatch(r"[A-Za-z](?:_(?:\{\w+\}|\w))?", name) for name in names)
    bare = re.sub(r"_(?:\{\w+\}|\w)|\([^()]*\)", "", side)
    return bool(bare) and not bare.startswith("-") and not re.search(r"[\d^<>]", bare) and not _is_plain(side)


def _is_plain(side: str) -> bool:
    r"""A number's expression: no letters but those of commands."""
    return not re.search(r"[A-Za-z]", re.sub(r"\\(?!text)[A-Za-z]+", "", side))


def _close(text: str) -> str:
    """An expression without the spaces that mean nothing; 1 2 is not 12."""
    return _IDLE_SPACE.sub("", text)


def _joined(text: str) -> str:
    return _TWO_DIGITS.sub(r"\1", _GROUPED.sub(lambda m: m[0].replace(" ", ""), text))


def _same_leaf(gold: str, answer: str, tolerance: float | None) -> bool:
    if "\\text" in gold + answer and not re.search(r"\d", gold) and (words := same_words(gold, answer)) is not None:
        return words
    gold, answer = without_unit(_joined(gold)), without_unit(_joined(answer))
    if number(gold) is not None:  # the letter in 5 m is a unit then, and else a factor
        answer = without_letter(answer)
    if _close(gold) == _close(answer):
        return True
    ours, theirs = number(gold), number(answer)
    if ours is not None and theirs is not None:
        return same_number(ours, theirs, tolerance)
    based, said = (_BASED.fullmatch(_close(text)) for text in (gold, answer))
    if based:  # 52_8: a base that the question has named may be left out
        digits, base = (said[1], said[2] or said[3]) if said else (_close(answer), based[2] or based[3])
        return (digits, base) == (based[1], based[2] or based[3])
    if said or _SIDE_BY_SIDE.search(gold) or _SIDE_BY_SIDE.search(answer):
        return False
    g, a = sides(gold), sides(answer)
    if len(g) == len(a) == 2:
        if has_inner_sides(gold) or has_inner_sides(answer):  # P(X=2) = 1/2, which algebra can't read
            return _close(g[0]) == _close(a[0]) and _same(g[1], a[1], tolerance)
        return same_equation(g, a)
    if _RELATION.search(gold) or _RELATION.search(answer):
        return verified(gold, answer)
    return same_expression(gold, answer, tolerance)
