r"""The released code's grading, for figures that compare with the paper's; wrong both ways on bare LaTeX.

It gives gold and candidate to math-verify as they stand, without `$` or a box around them, so that only plain numbers are
found in many of them: gold `3\sqrt{13}` accepts 3, and `\sqrt{51}` does not accept itself. Described in docs/evaluation.md.
The one difference: an answer that takes longer than a second counts as wrong, where theirs may take five.
"""

from typing import Any


def official_verdict(completion: str, gold: str) -> bool:
    """Returns the released code's verdict on a completion; any exception is a no. To be called where it can be ended."""
    try:
        candidate = official_candidate(completion)
        return _equal(gold, candidate) or _same_interval(gold, candidate)
    except Exception:  # that is the procedure
        return False


def official_candidate(completion: str) -> str:
    r"""Returns what it grades: the last balanced `\boxed{...}`, else the text after the last ####, else everything."""
    end = len(completion)
    for _ in range(100):  # unbalanced boxes that are looked at
        start = completion.rfind("\\boxed{", 0, end)
        if start < 0:
            break
        depth = 0
        for i in range(start + len("\\boxed"), len(completion)):
            depth += (completion[i] == "{") - (completion[i] == "}")
            if depth == 0:
                return completion[start + len("\\boxed{") : i].strip()
        end = start
    return completion.rsplit("####", 1)[-1].strip()


def _equal(gold: str, candidate: str) -> bool:
    from math_verify import parse, verify

    ours, theirs = (parse(text, parsing_timeout=None) for text in (gold, candidate))
    return bool(ours) and bool(theirs) and bool(verify(ours, theirs, timeout_seconds=None))


def _same_interval(gold: str, candidate: str) -> bool:
    ours, theirs = _interval(gold), _interval(candidate)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return False
    return all(_equal(g, c) for g, c in zip(ours[1], theirs[1], strict=True))


def _interval(text: str) -> "tuple[str, list[Any]] | None":
    text = text.replace("$", "").replace("\\left", "").replace("\\right", "").strip()
    if len(text) < 2 or text[0] not in "[(" or text[-1] not in "])":
        return None
    parts, depth, start = [], 0, 1
    for i in range(1, len(text) - 1):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if text[i] == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:-1].strip())
    return (text[0] + text[-1], parts) if len(parts) == 2 else None
