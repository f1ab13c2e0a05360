r"""Finding the final answer in a completion, and writing it in one way: strings in, strings out, in linear time.

A completion's answer is the last `\boxed{...}`; without one, what follows the last "answer is"; for GSM8K what follows
`####` goes before that, of a sentence its first number, and the last number is taken if there is nothing else; for the bundled problems only the box counts. equal.py says whether an answer is the right one.
"""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)[ \t\n]{0,9}\{|\\(?=\\(?:boxed|fbox))|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed {0,3}(-?\d[\d.,/]*)")
_SAYS = re.compile(
    r"answer\s*(?:\\?[*_]{1,3}\s*)?(?::|=|\bis\b\s*:?)\s*(?:(?:therefore|thus|simply|hence),?\s)?", re.IGNORECASE
)
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?:(?<![\w.)])-)?\.\d+")
_FIRST_NUMBER = re.compile(
    rf"(?:approximately|about|around|exactly|only|roughly|a total of|\W){{0,9}}?({_NUMBER.pattern})", re.IGNORECASE
)
_BETWEEN = re.compile(
    r"[ .-]{0,9}(?:(?:[,;]|and|or|\n|\\text ?\{ ?(?:and|or) ?\})[ -]{0,9}){1,3}(?:[A-Za-z]\w?(?:\(\w\))? ?= ?)?"
)
_HASHED = re.compile(r"[\s$\\]{0,5}[-+]?\s?[.\d]")
MOST_BOXES = 50  # that are looked at for several answers
_LONGEST_LINE = 1000  # characters after "answer is" that are looked at


def final_answer(text: str, benchmark: str | None = None) -> str | None:
    """Returns the final answer that a completion gives, as it is written there, or None if it gives none."""
    found = boxed_answer(text)
    if found is None and benchmark == "gsm8k":
        found = _hashed_answer(text)
    if found is None and benchmark != "bundled":  # where boxing the answer is part of what is to be learnt
        found = _said_answer(text)
        if benchmark == "gsm8k":
            found = _said_number(found or "")
    if benchmark == "gsm8k" and (found is None or not _NUMBER.search(found)):
        found = _last_number(text)
    return found


def reference_answer(text: str) -> str:
    r"""Returns the answer in a reference text: after the last `####`, else in the last box, else all of it."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    return (boxed_answer(text) if "\\boxed" in text else None) or text.strip()


def boxed_answer(text: str) -> str | None:
    r"""Returns what stands in the last balanced `\boxed{...}` (or `\fbox`) of `text` that holds anything, stripped; or None."""
    for start, end in reversed(boxed_spans(text)):  # each is cut out only when it is looked at: boxes in boxes are long
        if inside := text[start:end].strip():
            return inside
    bare = _BARE_BOX.findall(text)
    return bare[-1].rstrip(".,") if bare else None


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Returns where the contents of the balanced boxes begin and end, in order of their beginnings; escaped braces don't count."""
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # where a box's contents began; None for another brace
    start = max(0, min(i for i in (text.find("\\boxed"), text.find("\\fbox"), len(text)) if i >= 0))
    for match in _BRACES.finditer(text, start):
        token = match[0]
        if token == "}":
            if opened and (box := opened.pop()) is not None:
                spans.append((box, match.start()))
        elif token == "{":
            opened.append(None)
        elif token.endswith("{") and len(token) > 2:
            opened.append(match.end())
    return sorted(spans)


def neighbouring_boxes(text: str) -> str | None:
    r"""Returns the boxes that end the text side by side, as `\boxed{1} and x=\boxed{2}`, joined by commas; None for one alone."""
    joined: list[str] = []
    next_box = len(text)
    for start, end in reversed(boxed_spans(text)[-MOST_BOXES:]):
        if joined and not _between(text[end + 1 : next_box]):
            break
        joined.insert(0, text[start:end].strip())
        next_box = text.rfind("\\", 0, start)
    return ",".join(dict.fromkeys(joined)) if len(set(joined)) > 1 else None


def _between(text: str) -> bool:
    return len(text) < 80 and bool(_BETWEEN.fullmatch(re.sub(r"\$|\*|\\[()]|\\q?quad|\\,", "", text)))


def _said_answer(text: str) -> str | None:
    last = None
    for last in _SAYS.finditer(text):  # noqa: B007 (the last one)
        pass
    if last is None:
        return None
    lines = (line.strip() for line in text[last.end() : last.end() + _LONGEST_LINE].split("\n"))
    line = next((line for line in lines if line.strip("$*_ ") not in ("", "\\[")), "")
    line = re.split(r"\.(?=\s|$)|[;!?](?=\s|$)|,? (?:so|because|since|which|as)\b", line)[0]
    return line.strip().strip("*_ ").rstrip(".,").strip() or None


def _said_number(said: str) -> str | None:
    """The number that a sentence gives: what GSM8K asks for is one. None where the whole text's last number is as good."""
    if "\\" in said or re.fullmatch(r"\W{0,9}[\d.,]*\d ?/ ?\d+\W{0,9}", said):
        return said
    if "=" in said and (numbers := _NUMBER.findall(said)):
        return numbers[-1]
    first = _FIRST_NUMBER.match(said)
    alone = first and (not re.search(r"[+*/×]|\d", said[first.end() :]) or re.match(r" [a-z]{2}", said[first.end() :]))
    return first[1] if first and alone else None


def _hashed_answer(text: str) -> str | None:
    line = text.rsplit("####", 1)[1].strip().split("\n")[0].strip() if "####" in text else ""
    return line if _HASHED.match(line) else None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text[-10 * _LONGEST_LINE :])
    return numbers[-1] if numbers else None
