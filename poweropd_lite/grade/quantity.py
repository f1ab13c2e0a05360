r"""Numbers as they are written, and the units behind them. Strings and fractions only."""

import re
from dataclasses import dataclass
from fractions import Fraction

ROUNDING = Fraction(1, 10**6)  # a decimal stands for a number that it is this near to, relatively and absolutely
MOST_DIGITS = 400  # of a number that is read exactly

_DEGREES = re.compile(r" ?(?:\^ ?\{? ?\\circ ?\}?|\\degrees?) ?(?:[CF]\b|\\text ?\{ ?[CF] ?\})? ?$")
_CURRENCY = re.compile(r"^(-?) ?(?:\\\$|\\text ?\{ ?\\?\$ ?\}|[£€¥]) ?")
# Words that are units when they are glued to a number; others need a space, and must not be one of the second list.
_KNOWN = r"(?:[kcmnμ]m|[kmμ]g|[kmM]?(?:Hz|Pa|eV)|[kmM][JWVN]|k?mph|km/h|m/s|ft|in|min|ms|hrs?|rad|erg|mol|mL|lbs?|yd|mi|dollars?|cents?)"
_NO_UNIT = r"(?:hundred|thousand|million|billion|trillion|or|and|to|plus|minus|half|halves|squared|cubed|factorial|not|more|less|least|most|dozen|cosh|sinh|tanh|cot|sec|csc|arc\w*|pi|sqrt|sin|cos|tan|log|ln|exp|mod|choose|over|times|by|is)"
# A unit as LaTeX writes it: text or a symbol, with a power; several of them, multiplied or divided.
_POWER = r"(?: ?\^ ?\{? ?-?\d+ ?\}?)?"
_WORDS = rf"\\text ?\{{(?![^{{}}]*(?:\b{_NO_UNIT}\b|[+=<>])) ?(?:[^{{}}]|\{{[^{{}}]*\}})* ?\}}"
_FACTOR = rf"(?:{_WORDS}|\\mu ?(?:{_WORDS}|[A-Za-z]\b)|\\(?:Omega|AA|Angstrom) ?|[A-Z]_\{{?\\?odot\}}?){_POWER}"
_FACTORS = rf"{_FACTOR}(?: ?(?:\\cdot|\\times|/|\*)? ?\(? ?{_FACTOR} ?\)?){{0,8}}"
_TEXT_UNIT = re.compile(
    rf"(?<=[\d\w}}).!]) ?(?:{_FACTORS}|\\frac ?\{{ ?(?:1|{_FACTORS}) ?\}} ?\{{ ?{_FACTORS} ?\}}) ?$"
)
# A number, and words or a letter behind it.
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


@dataclass(frozen=True)
class Number:
    """A number as it was written: `exact` is False for a decimal fraction."""

    value: Fraction
    exact: bool = True
    percent: bool = False


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
        front = number(found[1] or f"{found[2]}1")
        power = int(found[3] or found[4])
        if front is None or abs(power) > MOST_DIGITS:
            return None
        return Number(front.value * Fraction(10) ** power, front.exact, percent)
    return None


def _ratio(above: int, below: int, percent: bool) -> Number | None:
    return Number(Fraction(above, below), percent=percent) if below else None


def same_number(gold: Number, answer: Number, tolerance: float | None = None) -> bool:
    """Returns whether two numbers are the same, exactly, or to ROUNDING where one is a decimal; 50% is 50 and 0.5."""
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
    size = min(Fraction(1), max(abs(gold.value), abs(answer.value)))
    return not (gold.exact and answer.exact) and gap <= ROUNDING * size
