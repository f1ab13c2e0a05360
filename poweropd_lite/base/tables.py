"""Tables and numbers as text, for a screen and for Markdown."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as a table for the screen: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells, the first being the head, as a Markdown table."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def score_names(n: int, own: bool) -> tuple[str, str]:
    """Returns what the mean and the best of n samples' scores are called: Avg@n and Pass@n, but of a user's `own` function."""
    return ("mean score", f"best of {n}") if own else (f"Avg@{n}", f"Pass@{n}")


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share as 12.3%, or - where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None, form: str = ".3g") -> str:
    """Returns a number, or - where there is none."""
    return "-" if value is None else format(value, form)
