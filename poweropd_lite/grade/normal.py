r"""One way of writing for an answer: layout, commands and words. Strings only.

`tidy` first makes every run of spaces one, so that no pattern after it can be made slow by them.
"""

import re
from collections.abc import Callable

_Rules = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "°": r"^\circ ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ",
        "∅": r"\emptyset ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "，": ",", "（": "(", "）": ")", "％": "%", "\u00a0": " ", "≈": r"\approx ",
        "“": "", "”": "", "‘": "", "’": "'", "`": "", "€": "", "£": "", "¥": "", "₹": "", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "µ": r"\mu ", "μ": r"\mu ", "Ω": r"\Omega ", "Å": r"\AA ", "&": " ",
    }
)  # fmt: skip
_FONTS = r"\\(?:mathrm|mathit|textbf|textit|textrm|textnormal|textsf|mbox|operatorname|mathsf|rm)"
_FUNCTIONS = "sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|gcd|lcm|max|min|det"
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]  # fmt: skip
_NO_REMARK = rf"mod\b|base\b|hundred|thousand|million|billion|trillion|dozen|{_FUNCTIONS}"
_LAYOUT: _Rules = [
    # A wide space parts two statements: x = 1 \quad y = 2.
    (re.compile(r"(?<==)([^=]*?)\\q?quad(?![a-zA-Z])(?= ?[^= ][^=]*=)"), r"\1, "),
    # A comma or a space in a number, said with a thin or a negative space: 10,\!080.
    (re.compile(r"(?<=\d)(?:,?\\!|\{,\}|\\[,;:])+ ?(?=\d{3}(?!\d))"), ""),
    # Every other space that LaTeX has.
    (re.compile(r"(?<!\\)\\[!,;: ]|\\(?:quad|qquad|thinspace|medspace)(?![a-zA-Z])|(?<!\\)~"), " "),
    # Sizes.
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|tiny|small|large|Large|huge|Huge|normalsize)(?![a-zA-Z])"), ""),
    # What stands around a formula, the distance of two lines, and a backslash that was left at the end.
    (re.compile(r"\\(?:begin|end) ?\{(?:aligned|align\*?|equation\*?|gathered)\}"), " "),
    (re.compile(r"\\\\ ?\[-?[\d.]+(?:pt|em|ex|mm)\]"), r"\\\\"),
    (re.compile(r"(?<!\\)\\$"), ""),
    (re.compile(r" +"), " "),
]  # fmt: skip
_WRAPPER = re.compile(r"\\(?:boldsymbol|mathbf|bm|underline|ensuremath|textbf|(?:text)?color ?\{[a-z]+\}) ?\{(.*)\}")
_MAGNITUDES = {"hundred": "2", "thousand": "3", "million": "6", "billion": "9", "trillion": "12"}
_BRACKETS = {"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]"}
_REPLACED: _Rules = [
    # Fractions, roots and brackets by one name.
    (re.compile(r"\\[dtc]frac(?![a-z])|\\nicefrac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\sqrt ?(\d\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\\?(?<![a-z])sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\([lr])(brace|brack)(?![a-z])"), lambda m: _BRACKETS[m[1] + m[2]]),
    (re.compile(r"\\[lr]angle(?![a-z])"), lambda m: "(" if m[0][1] == "l" else ")"),
    # Sets of numbers by one name each.
    (re.compile(r"\\mathbb ?(?:\{ ?([RZ]) ?\}|([RZ])(?![A-Za-z]))|\\(?:R|Reals|Z)(?![a-zA-Z])"), lambda m: r"\mathbb{" + (m[1] or m[2] or m[0][1]) + "}"),
    (re.compile(r"(^|= ?|\\in ?)\( ?- ?\\infty ?, ?\+? ?\\infty ?\)$|^- ?\\infty ?< ?[a-z] ?< ?\+? ?\\infty$|^(?:\\text ?\{ ?)?(?i:all real numbers?) ?\}?$"), lambda m: (m[1] or "") + r"\mathbb{R}"),
    # Upright i, e and d are what they are; single bold letters are letters.
    (re.compile(rf"(?:{_FONTS}|\\text) ?\{{ ?([eid]) ?\}}"), r"\1"),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm) ?\{ ?(\w) ?\}"), r"\1"),
    (re.compile(rf"\\operatorname\*? ?\{{ ?({_FUNCTIONS}) ?\}}"), r"\\\1 "),
    # Other fonts are text; an index loses its font.
    (re.compile(rf"{_FONTS} ?\{{"), r"\\text{"),
    (re.compile(r"\{\\(?:rm|bf|it) "), r"\\text{"),
    (re.compile(r"_ ?\{ ?\\text ?\{ ?(\w+) ?\} ?\}|_ ?\\text ?\{ ?(\w+) ?\}|_ ?\{ ?\\(max|min|odot) ?\}|_ ?\\(max|min|odot)(?![a-z])"), lambda m: "_{" + next(g for g in m.groups() if g) + "}"),
    # An ordinal is its number; a base in words; what is said before an answer, or behind it in brackets.
    (re.compile(r"(?<=\d) ?(?:\^ ?\{ ?\\text ?\{ ?(?:st|nd|rd|th) ?\} ?\}|\^? ?\\text ?\{ ?(?:st|nd|rd|th) ?\})"), ""),
    (re.compile(r"(?:(?<=1) ?\^ ?\{ ?st|(?<=2) ?\^ ?\{ ?nd|(?<=3) ?\^ ?\{ ?rd|(?<=\d) ?\^ ?\{ ?th) ?\}$"), ""),
    (re.compile(r"^(\d*(?:1(?=st)|2(?=nd)|3(?=rd)|\d(?=th)))[a-z]{2}$"), r"\1"),
    (re.compile(rf"_ ?(?:\{{ ?({'|'.join(_BASES)}) ?\}}|({'|'.join(_BASES)})(?![a-z]))"), lambda m: f"_{{{_BASES.index(m[1] or m[2]) + 2}}}"),
    (re.compile(r"\\text ?\{ ?([0-9A-F]+) ?\}(?=_)"), r"\1"),
    (re.compile(r"\\text ?\{ ?\}"), ""),
    (re.compile(r"^\\text ?\{ ?(?i:(?:the |final |our |correct )*(?:answer|result|value)(?:(?: (?:of|for|to) [^{}]*?)?(?: is| equals| are|:))?) ?\} ?[=:]? ?(?=.)"), ""),
    (re.compile(r"^(?i:(?:the |final |our )*(?:answer|result|value)(?: is| equals|:| ?=)) ?:? ?(?=.)"), ""),
    (re.compile(r"(?<=[\d}%]) ?(?:\\text ?\{ ?\((?!_NOT)[A-Za-z][A-Za-z ]+\) ?\}|(?<= )\((?!_NOT)[A-Za-z]{4,}(?: [A-Za-z]+)*\))$".replace("_NOT", _NO_REMARK)), ""),
    # 12,345 is a number, two million too.
    (re.compile(r"(?<![\w.,\\])\d{1,3}(?:,\d{3})+(?=\.\d|(?! ?,? ?\d)[^\d,]|$)"), lambda m: _thousands(m)),
    (re.compile(r"(?<=\d) ?(?:\\text ?\{ ?)?(hundred|thousand|million|billion|trillion)s?(?: ?\}|(?![a-z}]))"), lambda m: rf"\times 10^{{{_MAGNITUDES[m[1]]}}}"),
    # What parts the items of a list or the pieces of a set; what only comments on them.
    (re.compile(r" ?\\text ?\{ ?,? ?(?:and|or) ?\} ?|(?<![A-Za-z\\]),? (?:and|or) | ?\\(?:lor|vee)(?![a-z]) ?"), ","),
    (re.compile(r"(?<=[)\]}\d])(?:or|and)(?=[(\[\\\d])"), ","),
    (re.compile(r"^(.*?) ?(?:[,(]|\\text ?\{ ?,? ?(?:where|with|for)? ?\}) ?((?:[a-z] ?, ?)*[a-z]) ?\\in ?\\mathbb\{Z\} ?\)?$"), lambda m: m[1] if all(re.search(rf"(?<![a-z\\]){each.strip()}(?![a-z])|[a-z]*(?<=\d){each.strip()}|{each.strip()}\\", m[1]) for each in m[2].split(",")) else m[0]),
    # Words in one \text are a list of words.
    (re.compile(r"^\\text ?\{ ?(\w+(?: ?, ?\w+)+) ?\}$"), lambda m: ",".join(rf"\text{{{word.strip()}}}" for word in m[1].split(","))),
    (re.compile(r" ?,? ?(?:\\text ?\{ ?,? ?(?:for all|where|for every|for any)\b[^{}]*\}|\\forall\b).*$"), ""),
    (re.compile(r"\\cup(?![a-z])|(?<=[)\]]) ?U ?(?=[(\[])"), ","),
    # Signs with several spellings.
    (re.compile(r"\\leq(?:slant)?(?![a-z])|(?<!\\)<="), r"\\le "),
    (re.compile(r"\\geq(?:slant)?(?![a-z])|(?<!\\)>="), r"\\ge "),
    (re.compile(r"\\varnothing(?![a-z])"), r"\\emptyset "),
    (re.compile(r"\\infin(?![a-z])|\binfinity\b"), r"\\infty "),
    (re.compile(r"\bnp\.(arcsin|arccos|arctan|sin|cos|tan|exp|sqrt|log|pi)(?![a-z])"), r"\\\1"),
    (re.compile(r"(?<=[\d.)]) ?\*? ?\bpi\b"), r"\\pi "),
    # Powers of ten; a base in brackets; a set given by its condition; braces around one letter.
    (re.compile(r"(?<=[\d.]) ?[eE] ?([+-]?\d+)(?![\d.]*[A-Za-z{])"), r"\\times 10^{\1}"),
    (re.compile(r"(?<=\d) x 10(?= ?\^)"), r"\\times 10"),
    (re.compile(r"\(? ?(\d+) ?\)? ?_ ?\{? ?\( ?(\d+) ?\) ?\}?|\( ?(\d+) ?\) ?_ ?\{? ?(\d+) ?\}?"), lambda m: f"{m[1] or m[3]}_{{{m[2] or m[4]}}}"),
    (re.compile(r"\\\{ ?[a-z] ?(?:\\in(?![a-z])[^:|]*?)?(?:\\mid|:|\|) ?([^{}]*)\\\}"), r"\1"),
    (re.compile(r"([_^]) ?\{ ?([A-Za-z0-9]) ?\}"), r"\1\2"),
    (re.compile(r" +"), " "),
]  # fmt: skip
_WRAPPED = re.compile(r"(?:\$\$?(.*?)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\]) ?\.? ?")


def tidy(text: str) -> str:
    """Returns an answer without what is layout: dollar signs, spacing, font and size commands, final full stop."""
    text = re.sub(r"[⁰¹⁴-⁹²³⁻]+", _superscript, text)
    matrix = any(word in text for word in ("matrix", "array", "cases"))  # whose & is no layout
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
    first, *rest = (part.strip() for part in re.split(r"\\approx(?![a-z])", text))
    text = rest[0] if rest and re.fullmatch(r"[A-Za-z](?:_\w)?", first) else first
    inside = text[1:-1]
    if re.fullmatch(r"\{.*,.*\}", text) and _balanced(inside):  # a set without its backslashes
        text = rf"\{{{inside}\}}"
    return text.rstrip(".,; ").strip()


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
