r"""Where an answer parts: at equals signs, line breaks and conditions, and never inside brackets or environments. Strings only.

The = of \sum_{k=1}^{n}, of P(X=2) or of a system's third line is no equation of the whole.
"""

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\\begin ?\{|\\end ?\{|\\\\|\\.|[()\[\]{}&]|[<>!:]?=+", re.DOTALL)
_DEEPER = {"(": 1, "[": 1, "{": 1, "\\{": 1, ")": -1, "]": -1, "}": -1, "\\}": -1}
_DEEPER["\\begin{"] = 2  # an environment, and the brace of its name; \\end{ opens the one and closes the other
_CASES = re.compile(r"\\begin ?\{([dr]?cases|array)\} ?(?:\{[clr|]*\})?(.*)\\end ?\{\1\}")
_RELATED = re.compile(r"[=<>]|\\(?:leq?|geq?|lt|gt|neq?|approx)(?![a-z])")
_GOES_ON = re.compile(rf"{_RELATED.pattern}|[+*/]|- |\\(?:cdot|times)(?![a-z])")
_CONDITION = re.compile(r"\\text ?\{ ?,? ?(?:if|when|for)\b ?([^{}]*)\}|(?<![A-Za-z\\]),? ?\b(?:if|when)\b ")


def sides(text: str) -> list[str]:
    """Returns what stands between the equals signs of the whole."""
    return [part.strip() for part in _split(text, "=")]


def lines(text: str) -> list[str]:
    r"""Returns the lines that `\\` parts; one that goes on with an equals sign belongs to the line before."""
    found: list[str] = []
    for line in (part.strip() for part in _split(text, "\\\\")):
        if found and _GOES_ON.match(line):
            found[-1] += " " + line
        elif line:
            found.append(line)
    return found or [text]


def table(text: str) -> list[list[str]] | None:
    """Returns the rows, each of its cells, of an answer that is one system or piecewise function; None for any other."""
    whole = _CASES.fullmatch(text)
    if whole is None or "\\begin" in whole[2]:
        return None
    rows = [_cells(line) for line in _split(whole[2], "\\\\")]
    if whole[1] == "array" and not all(len(row) == 1 and _RELATED.search(row[0]) for row in rows if any(row)):
        return None  # a matrix
    return [[_unworded(cell).rstrip(",; ") for cell in row if cell] for row in rows if any(row)]


def _cells(line: str) -> list[str]:
    """The cells of a row; one that begins with a relation is only aligned there, `x &= 1`."""
    cells: list[str] = []
    for cell in (part.strip() for part in _split(line, "&")):
        if cells and _RELATED.match(cell):
            cells[-1] += " " + cell
        else:
            cells.append(cell)
    return cells


def conditioned(text: str) -> tuple[str, str]:
    r"""Returns an answer and the condition behind it, `a=3 \text{ if } n=1`; without one, the condition is empty."""
    found = _CONDITION.search(text)
    if found is None or not text[: found.start()].strip() or "\\begin" in text[: found.start()]:
        return text, ""
    return text[: found.start()].strip(" ,"), ((found[1] or "") + text[found.end() :]).strip()


def has_inner_sides(text: str) -> bool:
    """Whether an equals sign stands inside of brackets."""
    return "=" in text and len(sides(text)) < len(re.findall(r"(?<![<>!\\:])=(?!=)", text)) + 1


def _unworded(cell: str) -> str:
    return re.sub(r"^\\text ?\{ ?,? ?(?:if|when|for)? ?\}|^(?:if|when|for) ", "", cell).strip()


def _split(text: str, at: str) -> Iterator[str]:
    depth = start = 0
    for found in _TOKEN.finditer(text):
        token = found[0].replace(" ", "")
        depth += _DEEPER.get(token, 0)
        if token == at and depth <= 0:
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]
