r"""One way of writing for an answer: layout, units, thousands and numbers. Strings and fractions only.

`tidy` first makes every run of spaces one, so that no pattern after it can be made slow by them.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 400  # of a number that is read exactly

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "°": r"^\circ ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ",
        "∅": r"\emptyset ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "，": ",", "（": "(", "）": ")", "％": "%", "\u00a0": " ", "≈": r"\approx ",
        "“": "", "”": "", "‘": "", "’": "'", "`": "", "µ": r"\mu ", "μ": r"\mu ", "Ω": r"\Omega ", "Å": r"\AA ", "&": " ",
    }
)  # fmt: skip
_FONTS = r"\\(?:mathrm|mathit|textbf|textit|textrm|textnormal|textsf|mbox|operatorname|mathsf|rm)"
_LAYOUT = [
    # A comma or a space in a number, said with a thin or a negative space: 10,\!080.
    (re.compile(r"(?<=\d)(?:,?\\!|\{,\}|\\[,;:])+ ?(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\\)\\[!,;: ]|\\(?:quad|qquad|thinspace|medspace)(?![a-zA-Z])|(?<!\\)~"), " "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|tiny|small|large|Large|huge|Huge|normalsize)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:begin|end) ?\{(?:aligned|align\*?|equation\*?|gathered)\}"), " "),
    (re.compile(r"\\\\ ?\[-?[\d.]+(?:pt|em|ex|mm)\]"), r"\\\\"),
    (re.compile(r"(?<!\\)\\$"), ""),
    (re.compile(r" +"), " "),
]  # fmt: skip
_WRAPPER = re.compile(r"\\(?:boldsymbol|mathbf|bm|underline|ensuremath|textbf|(?:text)?color ?\{[a-z]+\}) ?\{(.*)\}")
_MAGNITUDES = {"hundred": "2", "thousand": "3", "million": "6", "billion": "9", "trillion": "12"}
_REPLACED = [
    (re.compile(r"\\[dtc]frac(?![a-z])|\\nicefrac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\sqrt ?(\d\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\\?(?<![a-z])sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\lbrace(?![a-z])|\\lbrack(?![a-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-z])|\\rbrack(?![a-z])"), r"\\}"),
    (re.compile(r"\\[lr]angle(?![a-z])"), lambda m: "(" if m[0][1] == "l" else ")"),
    # Upright i, e and d are what they are; single bold letters are letters.
    (re.compile(rf"(?:{_FONTS}|\\text) ?\{{ ?([eid]) ?\}}"), r"\1"),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm) ?\{ ?(\w) ?\}"), r"\1"),
    (re.compile(r"\\operatorname\*? ?\{ ?(sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln|exp|arcsin|arccos|arctan|gcd|lcm|max|min|det) ?\}"), r"\\\1 "),
    (re.compile(rf"{_FONTS} ?\{{"), r"\\text{"),
    (re.compile(r"\{\\(?:rm|bf|it) "), r"\\text{"),
    (re.compile(r"_ ?\{ ?\\text ?\{ ?(\w+) ?\} ?\}|_ ?\\text ?\{ ?(\w+) ?\}|_ ?\{ ?\\(max|min|odot) ?\}|_ ?\\(max|min|odot)(?![a-z])"), lambda m: "_{" + next(g for g in m.groups() if g) + "}"),
    (re.compile(r"(?<![\w.,\\])\d{1,3}(?:,\d{3})+(?=\.\d|(?! ?,? ?\d)[^\d,]|$)"), lambda m: _thousands(m)),
    (re.compile(r"(?<=\d) ?(?:\\text ?\{ ?)?(hundred|thousand|million|billion|trillion)s?(?: ?\}|(?![a-z}]))"), lambda m: rf"\times 10^{{{_MAGNITUDES[m[1]]}}}"),
    (re.compile(r" ?\\text ?\{ ?,? ?(?:and|or) ?\} ?|(?<![A-Za-z\\]),? (?:and|or) | ?\\(?:lor|vee)(?![a-z]) ?"), ","),
    (re.compile(r" ?,? ?(?:\\text ?\{ ?,? ?(?:for all|where|for every|for any)\b[^{}]*\}|\\forall\b).*$"), ""),
    (re.compile(r"\\cup(?![a-z])|(?<=[)\]]) ?U ?(?=[(\[])"), ","),
    (re.compile(r"\\leq(?:slant)?(?![a-z])|(?<!\\)<="), r"\\le "),
    (re.compile(r"\\geq(?:slant)?(?![a-z])|(?<!\\)>="), r"\\ge "),
    (re.compile(r"\\varnothing(?![a-z])"), r"\\emptyset "),
    (re.compile(r"\\infin(?![a-z])|\binfinity\b"), r"\\infty "),
    (re.compile(r"\bnp\.(arcsin|arccos|arctan|sin|cos|tan|exp|sqrt|log|pi)(?![a-z])"), r"\\\1"),
    (re.compile(r"(?<=[\d.)]) ?\*? ?\bpi\b"), r"\\pi "),
    (re.compile(r"(?<=[\d.]) ?[eE] ?([+-]?\d+)(?![\d.]*[A-Za-z{])"), r"\\times 10^{\1}"),
    (re.compile(r"(?<=\d) x 10(?= ?\^)"), r"\\times 10"),
    (re.compile(r"\(? ?(\d+) ?\)? ?_ ?\{? ?\( ?(\d+) ?\) ?\}?|\( ?(\d+) ?\) ?_ ?\{? ?(\d+) ?\}?"), lambda m: f"{m[1] or m[3]}_{{{m[2] or m[4]}}}"),
    (re.compile(r"\\\{ ?[a-z] ?(?:\\in(?![a-z])[^:|]*?)?(?:\\mid|:|\|) ?([^{}]*)\\\}"), r"\1"),
    (re.compile(r"([_^]) ?\{ ?([A-Za-z0-9]) ?\}"), r"\1\2"),
    (re.compile(r" +"), " "),
]  # fmt: skip
_WRAPPED = re.compile(r"(?:\$\$?(.*?)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\]) ?\.? ?")
_DEGREES = re.compile(r" ?(?:\^ ?\{? ?\\circ ?\}?|\\degrees?) ?(?:[CF]\b|\\text ?\{ ?[CF] ?\})? ?$")
_CURRENCY = re.compile(r"^(-?) ?(?:\\\$|\\text ?\{ ?\\?\$ ?\}|[£€¥]) ?")
_KNOWN = r"(?:[kcmnμ]m|[kmμ]g|[kmM]?(?:Hz|Pa|eV)|[kmM][JWVN]|k?mph|km/h|m/s|ft|in|min|ms|hrs?|rad|erg|mol|mL|lbs?|yd|mi|dollars?|cents?)"
_NO_UNIT = r"(?:hundred|thousand|million|billion|trillion|or|and|to|plus|minus|half|halves|squared|cubed|factorial|not|more|less|least|most|dozen|cosh|sinh|tanh|cot|sec|csc|arc\w*|pi|sqrt|sin|cos|tan|log|ln|exp|mod|choose|over|times|by|is)"
_POWER = r"(?: ?\^ ?\{? ?-?\d+ ?\}?)?"
_WORDS = rf"\\text ?\{{(?![^{{}}]*(?:\b{_NO_UNIT}\b|[+=<>])) ?(?:[^{{}}]|\{{[^{{}}]*\}})* ?\}}"
_FACTOR = rf"(?:{_WORDS}|\\mu ?(?:{_WORDS}|[A-Za-z]\b)|\\(?:Omega|AA|Angstrom) ?|[A-Z]_\{{?\\?odot\}}?){_POWER}"
_FACTORS = rf"{_FACTOR}(?: ?(?:\\cdot|\\times|/|\*)? ?\(? ?{_FACTOR} ?\)?){{0,8}}"
_TEXT_UNIT = re.compile(
    rf"(?<=[\d\w}}).!]) ?(?:{_FACTORS}|\\frac ?\{{ ?(?:1|{_FACTORS}) ?\}} ?\{{ ?{_FACTORS} ?\}}) ?$"
)
_LITERAL = r"-?(?:[\d.,]*\d\.?(?: ?(?:\\times|\\cdot|\*) ?10 ?\^ ?(?:\{ ?-?\d+ ?\}|\d))?| ?\d* ?/ ?\d+|\\frac ?\{[^{}]*\} ?\{[^{}]*\})"
_WORD_UNIT = re.compile(
    rf"({_LITERAL})(?: ?(?:{_KNOWN}){_POWER}| (?!{_NO_UNIT}\b)[A-Za-z]{{2,}}(?: (?!{_NO_UNIT}\b)[A-Za-z]{{2,}}){{0,4}}{_POWER})"
    rf"(?: ?(?:/|\\cdot|per) ?(?:[A-Za-z]{{1,8}}){_POWER}){{0,3}}"
)
_LETTER_UNIT = re.compile(rf"({_LITERAL})(?: [A-Zcghlmst]| ?[JKNVW]){_POWER}")
_PLAIN = re.compile(r"([+-]?)(?:(\d+)(?:\.(\d*))?|\.(\d+))")
_FRACTION = re.compile(r"([+-]?)\\frac ?(?:\{([+-]?\d+)\}|(\d)) ?(?:\{([+-]?\d+)\}|(\d))")
_SLASH = re.compile(r"([+-]?\d+)\.? ?/ ?(\d+)\.?")
_MIXED = re.compile(r"([+-]?)(\d+) ?(?: (\d+) ?/ ?(\d+)|\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\})")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar|dot) ?\{? ?(\d+) ?\}?")
_SCIENTIFIC = re.compile(r"(?:\(?([+-]?[\d.]+)\)? ?(?:\\times|\\cdot|\*) ?|([+-]?))10 ?\^ ?(?:\{ ?([+-]?\d+) ?\}|(\d))")
_LETTER = re.compile(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+|([A-Za-z])")
_NAMED = r"(\\[a-z]+|[A-Za-z])(?:_(?:\{(\w+)\}|(\w)))?"
_RATE = re.compile(rf"\\frac ?\{{ ?d ?{_NAMED} ?\}} ?\{{ ?d ?([a-z]) ?\}}|\\frac ?\{{ ?d ?\^ ?\{{?2\}}? ?{_NAMED} ?\}} ?\{{ ?d ?([a-z]) ?\^ ?\{{?2\}}? ?\}}|(?<![\w\\])d{_NAMED} ?/ ?dt\b")  # fmt: skip
_DOT = re.compile(rf"\\(d?)dot ?(?:\{{ ?{_NAMED} ?\}}| ?{_NAMED})")
_PRIMED = re.compile(rf"{_NAMED}(?:('{{1,3}})|\^ ?\{{? ?((?:\\prime ?){{1,3}})\}}?)")


@dataclass(frozen=True)
class Number:
    """A number as it was written: `exact` is False for a decimal fraction."""

    value: Fraction
    exact: bool = True
    percent: bool = False


def tidy(text: str) -> str:
    """Returns an answer without what is layout: dollar signs, spacing, font and size commands, final full stop."""
    text = re.sub(r"[⁰¹⁴-⁹²³⁻]+", _superscript, text)
    matrix = "matrix" in text or "array" in text  # whose & is no layout
    text = text.replace("&", "\0") if matrix else text
    text = " ".join(text.translate(_UNICODE).replace("\0", "&").split()).strip("* ")
    if whole := _WRAPPED.fullmatch(text):
        inner = next(group for group in whole.groups() if group is not None)
        text = inner if "$" not in inner else text
    text = re.sub(r"(?<!\\)\$", "", text)
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text.strip())
    for _ in range(3):
        whole = _WRAPPER.fullmatch(text)
        if whole is None or not _balanced(whole[1]):
            break
        text = whole[1].strip()
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = re.sub(r"^(?:\\(?:approx|simeq|sim)(?![a-z]) ?)+", "", text.strip())
    return re.split(r"\\approx(?![a-z])", text)[0].rstrip(".,; ").strip()


def _thousands(found: re.Match) -> str:
    """Joins 12,345; inside brackets the comma parts two numbers."""
    before = found.string[: found.start()].replace("\\{", "(").replace("\\}", ")")
    inside = sum((c in "([") - (c in ")]") for c in before) > 0
    return found[0] if inside else found[0].replace(",", "")


def _superscript(found: re.Match) -> str:
    plain = found[0].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    return f"^{{{plain}}}"


def _balanced(text: str) -> bool:
    depth = 0
    for c in re.sub(r"\\[{}]", "", text):
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return False
    return depth == 0


def text_answer(text: str, beside_text: bool = False) -> str | None:
    r"""Returns the words of an answer that is words, such as `\text{even}` or (C), in lower case; None for mathematics.

    Beside a gold answer that is words (`beside_text`), a bare letter or word is one too.
    """
    text = re.sub(
        r"\\text ?\{ ?([A-Z]{2,}) ?\}(?= ?=)|(?<==)( ?)\\text ?\{ ?([A-Z]{2,}) ?\}", lambda m: m[1] or m[3], text
    )
    wrapped = re.fullmatch(r"\(? ?\\text ?\{ ?([^{}]*?) ?\} ?\)?", text)
    inner = wrapped[1] if wrapped else text
    inner = re.sub(r"^ ?\(([A-Za-z])\) ?$", r"\1", inner.strip()).strip(" .")
    if re.fullmatch(r"[A-Z]{2,} ?= ?[A-Z]{2,}", inner):  # SRAC=LRAC, which are no products
        return "=".join(sorted(side.strip().lower() for side in inner.split("=")))
    if not re.fullmatch(r"[A-Za-z][A-Za-z' \-]*", inner):
        return None
    # Four letters and more are a word, unless they are capitals, as points are.
    word = r"[A-Za-z]?[a-z]{3,}(?:[ '-]+[A-Za-z]+)*|[A-Z]?[a-z]+(?: [a-z]+)+|yes|no|Yes|No"
    if wrapped or beside_text or re.fullmatch(word, inner):
        return re.sub(r"^(?:an?|the) (?=\w)", "", " ".join(inner.lower().split()))
    return None


def choice(text: str) -> str | None:
    r"""Returns the letter of a multiple choice that an answer begins with: `(C)`, `\text{(C) } 42`, `C. 42`, `Option C`."""
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    found = re.match(r"\W*(?:[Oo]ption|[Cc]hoice|[Aa]nswer)?\W*([A-Za-z])(?=[).:]|$| )", plain)
    return found[1].lower() if found and (len(plain.strip("(). ")) == 1 or re.match(r"\W*(?:\w+ )?\(?[A-Z][).:]|[Oo]ption|[Cc]hoice", plain)) else None  # fmt: skip


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
    opener, closer = (2 if text.startswith("\\{") else 1), (2 if text.endswith("\\}") else 1)
    kind = text[:opener][-1:] + text[-1:]
    if len(text) < opener + closer + 1 or kind not in ("()", "[]", "(]", "[)", "{}"):
        return "", []
    if (kind == "{}") != ((opener, closer) == (2, 2)):
        return "", []
    depth, i = 0, 0
    while i < len(text) - closer:
        c = text[i]
        if c == "\\":
            i += 1
            c = text[i : i + 1] if text[i : i + 1] in ("{", "}") else " "
        depth += (c in "([{") - (c in ")]}")
        if depth <= 0:
            return "", []
        i += 1
    inside = text[opener : len(text) - closer].strip()
    return (kind, split_list(inside)) if inside else ("", [])


def _both_signs(part: str) -> list[str]:
    pieces = re.split(r"\\pm(?![a-z])", part)
    if len(pieces) != 2 or "\\mp" in part or part.startswith(("(", "[", "\\{")):
        return [part]
    before, after = pieces
    return [f"{before}+{after}" if before.strip() else after.strip(), f"{before}-{after}"]


def without_unit(text: str) -> str:
    r"""Returns an expression without its unit, degree or currency sign: `5\text{ cm}^2`, `\$18.90`, `30^\circ`, `15 mph`."""
    text = _DEGREES.sub("", _CURRENCY.sub(r"\1", text))
    if whole := re.fullmatch(r"\\text ?\{([^{}]*)\}", text):
        text = whole[1].strip()
    shorter = _TEXT_UNIT.sub("", text)
    text = shorter if shorter.strip() else text
    text = re.sub(r" ?(?:degrees?|percent(?:age)?|pct) ?$", lambda m: r"\%" if "p" in m[0] else "", text)
    if unit := _WORD_UNIT.fullmatch(text):
        text = unit[1]
    return re.sub(r" ?\\\$ ?$", "", text).strip()


def without_letter(text: str) -> str:
    """Returns `5` for `5 m`: a number without the single letter behind it, if that can be a unit."""
    bare = _LETTER_UNIT.fullmatch(text)
    return bare[1] if bare else text


def readable(text: str) -> str:
    r"""Returns an expression as math-verify reads it right.

    It lowers every letter, which would make 1 of R/r: a letter that is there as R and r gets another name as R. E with an
    index is a name, and \gamma a letter, not Euler's constants. It takes y' for y and dx/dt for 0: derivatives get names.
    """
    text = _RATE.sub(_named_rate, text)
    text = _DOT.sub(lambda m: _indexed(m[2] or m[5], m[3] or m[4] or m[6] or m[7], 2 if m[1] else 1), text)
    text = _PRIMED.sub(lambda m: _indexed(m[1], m[2] or m[3], len(m[4]) if m[4] else m[5].count("prime")), text)
    text = re.sub(r"([A-Za-z0-9])!(?=\^)", r"(\1!)", text)
    text = re.sub(r"\\gamma(?![a-z])", r"\\zeta" if r"\zeta" not in text else r"\\xi", text)
    letters = set(_LETTER.findall(text)) - {""}
    both = {letter for letter in letters if letter.isupper() and letter.lower() in letters}
    if re.search(r"(?<![\\A-Za-z])E_", text):
        both.add("E")
    free = iter(letter for letter in "wzuvqhgklj" if letter not in letters and letter.upper() not in letters)
    names = {letter: next(free, letter) for letter in sorted(both)}
    return _LETTER.sub(lambda m: names.get(m[1], m[0]), text) if names else text


def _named_rate(found: re.Match) -> str:
    names = found.groups()
    for start, order in ((0, 1), (4, 2), (8, 1)):
        if names[start]:
            by = (names[start + 3] if start < 8 else "t").replace("t", "").replace("x", "")  # as a dot or a prime means
            return _indexed(names[start], (names[start + 1] or names[start + 2] or "") + by, order)
    return found[0]


def _indexed(name: str, index: str | None, order: int) -> str:
    return f"{name}_{{{index or ''}90{order}}} "


def number(text: str) -> Number | None:
    r"""Returns a number that is written out (12,345.6, -3/4, \frac{1}{2}, 4.5\times 10^{33}, 50\%), or None."""
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return None
    percent = text.endswith("%")
    if percent:
        text = text[:-1].removesuffix("\\").strip()
    if found := _PLAIN.fullmatch(text):
        sign, whole, part, bare = found.groups()
        value = Fraction((whole or "0") + "." + (part or bare or "0"))
        return Number(-value if sign == "-" else value, exact=not (part or bare), percent=percent)
    if found := _FRACTION.fullmatch(text):
        sign, a, b, c, d = found.groups()
        return _ratio(int(a or b) * (-1 if sign == "-" else 1), int(c or d), percent)
    if found := _SLASH.fullmatch(text):
        return _ratio(int(found[1]), int(found[2]), percent)
    if (found := _MIXED.fullmatch(text)) and int(found[4] or found[6]):
        value = int(found[2]) + Fraction(int(found[3] or found[5]), int(found[4] or found[6]))
        return Number(-value if found[1] == "-" else value, percent=percent)
    if found := _REPEATING.fullmatch(text):
        sign, whole, once, again = found.groups()
        value = Fraction((whole or "0") + "." + (once or "0"))
        value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(once))
        return Number(-value if sign == "-" else value, percent=percent)
    if found := _SCIENTIFIC.fullmatch(text):
        front = _PLAIN.fullmatch(found[1] or f"{found[2]}1")
        power = int(found[3] or found[4])
        if front is None or abs(power) > MOST_DIGITS:
            return None
        before = number(front[0])
        return Number(before.value * Fraction(10) ** power, before.exact, percent)
    return None


def _ratio(above: int, below: int, percent: bool) -> Number | None:
    return Number(Fraction(above, below), percent=percent) if below else None
