r"""One way of writing for an answer: layout, units, thousands and numbers. Strings and fractions only."""

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 400  # of a number that is read exactly

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "°": r"^\circ ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ",
        "∅": r"\emptyset ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "，": ",", "（": "(", "）": ")", "％": "%", "\u00a0": " ",
        "“": "", "”": "", "‘": "", "’": "'", "`": "",
    }
)  # fmt: skip
_WRAPPED = re.compile(r"\s*(?:\$\$?(.*?)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\])\s*\.?\s*", re.DOTALL)
_REPLACED = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-z])\s*"), ""),
    (re.compile(r"(?<!\\)\\[!,;:]|\\(?:quad|qquad|thinspace|medspace)(?![a-z])|(?<!\\)~|(?<!\\)\\ "), " "),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\sqrt\s*(\d\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:lbrace|lbrack)(?![a-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace|rbrack)(?![a-z])"), r"\\}"),
    (re.compile(r"\\(?:mathrm|mathbf|mathit|textbf|textit|textrm|textnormal|mbox|operatorname|mathsf|bm)\s*\{"), r"\\text{"),
    (re.compile(r"\{\\(?:rm|bf|it)\s+"), r"\\text{"),
    (re.compile(r"\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|\s*(?<![A-Za-z\\]),?\s+(?:and|or)\s+"), ","),
    (re.compile(r"\\cup(?![a-z])"), ","),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\\(?:leqslant|leq)(?![a-z])"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq)(?![a-z])"), r"\\ge "),
    (re.compile(r"(?<!\\)<="), r"\\le "),
    (re.compile(r"(?<!\\)>="), r"\\ge "),
    (re.compile(r"\\varnothing(?![a-z])"), r"\\emptyset "),
    (re.compile(r"\\infin(?![a-z])|\binfinity\b"), r"\\infty "),
    (re.compile(r"\bnp\.(arcsin|arccos|arctan|sin|cos|tan|exp|sqrt|log|pi)(?![a-z])"), r"\\\1"),
    (re.compile(r"(?<=\d),\s+(?=\d{3}(?!\d))"), ", "),
    (re.compile(r"(?<=[\d.])\s*[eE]\s*([+-]?\d+)(?![\d.]*[A-Za-z{])"), r"\\times 10^{\1}"),
    (re.compile(r"\\times10"), r"\\times 10"),
    (re.compile(r"([_^])\s*\{\s*([A-Za-z0-9])\s*\}"), r"\1\2"),
    (re.compile(r"\s+"), " "),
]  # fmt: skip
_THIN_THOUSANDS = re.compile(r"(?<=\d),?(?:\\[!,;: ]|\{,\}|\\!)+,?\s*(?=\d{3}(?!\d))")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degrees?)\s*(?:[CF]\b|\\text\s*\{\s*[CF]\s*\})?\s*$")
_LETTER = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|([A-Za-z])")
_CURRENCY = re.compile(r"^\s*(-?)\s*(?:\\\$|[$£€¥])\s*")
_TEXT_UNIT = re.compile(r"(?<=[\d\w}).!])\s*\\text\s*\{[^{}]*\}\s*(?:\^\s*\{?\s*-?\d\s*\}?)?\s*(?:/\s*\\text\s*\{[^{}]*\}(?:\^\s*\{?\d\}?)?\s*)?$")  # fmt: skip
_MAGNITUDES = (
    r"hundred|thousand|million|billion|trillion|dozen|percent|pi|sqrt|sin|cos|tan|log|ln|exp|mod|choose|over|times|[ij]"
)
_WORD_UNIT = re.compile(
    rf"^(-?[\d.,]+|-?[\d.,]*\s*/\s*\d+|-?\\frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}}|.*10\^\{{-?\d+\}})\s*"
    rf"(?!(?:{_MAGNITUDES})\b)(?:[A-Za-z]{{2,}}|[A-Za-z](?=/))[A-Za-z0-9 /^.*{{}}-]*$"
)
_PLAIN = re.compile(r"([+-]?)(?:(\d+)(?:\.(\d*))?|\.(\d+))")
_FRACTION = re.compile(r"([+-]?)\\frac\s*(?:\{([+-]?\d+)\}|(\d))\s*(?:\{([+-]?\d+)\}|(\d))")
_SLASH = re.compile(r"([+-]?\d+)\.?\s*/\s*(\d+)\.?")
_SCIENTIFIC = re.compile(r"(.*?)\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_POWER_OF_TEN = re.compile(r"([+-]?)10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")


@dataclass(frozen=True)
class Number:
    """A number as it was written: `exact` is False for a decimal fraction."""

    value: Fraction
    exact: bool = True
    percent: bool = False


def tidy(text: str) -> str:
    """Returns an answer without what is layout: dollar signs, spacing, font and size commands, final full stop."""
    text = " ".join(text.translate(_UNICODE).split()).strip("* ")
    if whole := _WRAPPED.fullmatch(text):
        inner = next(group for group in whole.groups() if group is not None)
        text = inner if "$" not in inner else text
    text = _THIN_THOUSANDS.sub(",", text)
    text = re.sub(r"(?<!\\)\$", "", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;").strip()


def text_answer(text: str, beside_text: bool = False) -> str | None:
    r"""Returns the words of an answer that is words, such as `\text{even}` or (C), in lower case; None for mathematics.

    Beside a gold answer that is words (`beside_text`), a bare letter or word is one too.
    """
    wrapped = re.fullmatch(r"\(?\s*\\text\s*\{\s*(.*?)\s*\}\s*\)?", text)
    inner = wrapped[1] if wrapped and "\\text" not in wrapped[1] else text
    inner = re.sub(r"^\s*\(([A-Za-z])\)\s*$", r"\1", inner.strip()).strip(" .")
    if not re.fullmatch(r"[A-Za-z][A-Za-z' \-]*", inner):
        return None
    if (
        wrapped
        or beside_text
        or re.fullmatch(r"[A-Za-z]{4,}(?:[ '-]+[A-Za-z]+)*|[A-Z]?[a-z]+(?: [a-z]+)+|yes|no|Yes|No", inner)
    ):
        return " ".join(inner.lower().split())
    return None


def split_list(text: str) -> list[str]:
    r"""Splits at the commas (or semicolons) outside brackets; `a \pm b` is two. Brackets of intervals need not match."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        c = text[i]
        if c == "\\" and text[i + 1 : i + 2] in ("{", "}"):
            depth += 1 if text[i + 1] == "{" else -1
            i += 1
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c in ",;" and depth <= 0:
            parts.append(text[start:i].strip())
            start = i + 1
        i += 1
    parts.append(text[start:].strip())
    parts = [part for part in parts if part] or [text]
    return [each for part in parts for each in _both_signs(part)]


def bracketed(text: str) -> tuple[str, list[str]]:
    r"""Returns the brackets that enclose all of `text` and the parts inside: `(3,4]` gives "(]"; "" and [] if none do."""
    opener = 2 if text.startswith("\\{") else 1
    closer = 2 if text.endswith("\\}") else 1
    kind = text[:opener][-1:] + text[-1:]
    if len(text) < opener + closer + 1 or kind not in ("()", "[]", "(]", "[)", "{}"):
        return "", []
    if kind == "{}" and (opener, closer) != (2, 2):
        return "", []
    if kind != "{}" and (opener, closer) != (1, 1):
        return "", []
    depth, i = 0, 0
    while i < len(text) - closer:
        c = text[i]
        if c == "\\":
            i += 1
            c = text[i : i + 1] if text[i : i + 1] in ("{", "}") else ""
        depth += (c in ("(", "[", "{") and c != "") - (c in (")", "]", "}") and c != "")
        if depth <= 0:
            return "", []
        i += 1
    inside = text[opener : len(text) - closer].strip()
    return (kind, split_list(inside)) if inside else ("", [])


def _both_signs(part: str) -> list[str]:
    pieces = re.split(r"\\pm(?![a-z])", part)
    if len(pieces) != 2 or "\\mp" in part:
        return [part]
    return [f"{pieces[0]}+{pieces[1]}".lstrip("+ ") if not pieces[0].strip() else f"{pieces[0]}+{pieces[1]}", f"{pieces[0]}-{pieces[1]}"]  # fmt: skip


def without_unit(text: str) -> str:
    r"""Returns an expression without its unit, degree or currency sign: `5\text{ cm}^2`, `\$18.90`, `30^\circ`, `15 mph`."""
    text = _CURRENCY.sub(r"\1", text)
    text = _DEGREES.sub("", text)
    while (shorter := _TEXT_UNIT.sub("", text)) != text and shorter.strip():
        text = shorter
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    if whole:
        text = whole[1].strip()
    text = re.sub(r"\s*(?:degrees?|percent(?:age)?|pct)\s*$", lambda m: r"\%" if "p" in m[0] else "", text)
    if unit := _WORD_UNIT.match(text):
        text = unit[1]
    return re.sub(r"\s*\\\$\s*$", "", text).strip()


def without_letter(text: str) -> str:
    """Returns `5` for `5 m`: a number without the single letter, or its power, behind it."""
    bare = re.fullmatch(r"(-?[\d.,]+|.*10\^\{-?\d+\})\s+[A-Za-z](?:\^\{?-?\d\}?)?", text)
    return bare[1] if bare else text


def distinct_letters(text: str) -> str:
    """Returns an expression that can be read in lower case: a letter that is there as R and r gets another name as R.

    The reader lowers every letter, which would make 1 of R/r; and E with an index is a name, not the base of logarithms.
    """
    text = re.sub(r"([A-Za-z0-9])!(?=\^)", r"(\1!)", text)
    letters = set(_LETTER.findall(text)) - {""}
    both = {letter for letter in letters if letter.isupper() and letter.lower() in letters}
    if re.search(r"(?<![\\A-Za-z])E_", text):
        both.add("E")
    free = iter(letter for letter in "wzuvqhgklj" if letter not in letters and letter.upper() not in letters)
    names = {letter: next(free, letter) for letter in sorted(both)}
    return _LETTER.sub(lambda m: names.get(m[1], m[0]), text) if names else text


def number(text: str) -> Number | None:
    r"""Returns a number that is written out (12,345.6, -3/4, \frac{1}{2}, 4.5\times 10^{33}, 50\%), or None."""
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return None
    percent = text.endswith("%")
    if percent:
        text = text[:-1].removesuffix("\\").strip()
    text = re.sub(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])", lambda m: m[1].replace(",", ""), text)
    if plain := _PLAIN.fullmatch(text):
        sign, whole, part, bare = plain.groups()
        digits = (whole or "0") + "." + (part or bare or "0")
        return Number(Fraction(digits) * (-1 if sign == "-" else 1), exact=not (part or bare), percent=percent)
    if fraction := _FRACTION.fullmatch(text):
        sign, a, b, c, d = fraction.groups()
        return _ratio(int(a or b) * (-1 if sign == "-" else 1), int(c or d), percent)
    if slash := _SLASH.fullmatch(text):
        return _ratio(int(slash[1]), int(slash[2]), percent)
    if power := _POWER_OF_TEN.fullmatch(text):
        return _scaled(Number(Fraction(-1 if power[1] == "-" else 1), percent=percent), int(power[2] or power[3]))
    if scientific := _SCIENTIFIC.fullmatch(text):
        mantissa = _PLAIN.fullmatch(scientific[1].strip("() "))
        if mantissa:
            front = number(scientific[1].strip("() "))
            return front and _scaled(Number(front.value, front.exact, percent), int(scientific[2] or scientific[3]))
    return None


def _ratio(above: int, below: int, percent: bool) -> Number | None:
    return Number(Fraction(above, below), percent=percent) if below else None


def _scaled(front: Number, power: int) -> Number | None:
    return (
        Number(front.value * Fraction(10) ** power, front.exact, front.percent) if abs(power) <= MOST_DIGITS else None
    )
