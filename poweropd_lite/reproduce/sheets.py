"""A table as text, before it is Markdown or HTML."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One row: its cells as text, and what kind it is (measured, paper, model)."""

    cells: list[str]
    kind: str = "measured"


@dataclass(frozen=True)
class Sheet:
    """One table: a title, a sentence or two on how to read it, the head, the rows, and notes below."""

    title: str
    about: str
    head: list[str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def markdown(sheets: list[Sheet], title: str, about: list[str]) -> str:
    """Returns tables as a Markdown page."""
    parts = [f"# {title}\n", *(f"{line}\n" for line in about)]
    for sheet in sheets:
        rows = [sheet.head, ["---"] * len(sheet.head), *(line.cells for line in sheet.lines)]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts += [f"## {sheet.title}\n", f"{sheet.about}\n", f"{table}\n"]
        parts += ["\n".join(f"- {note}" for note in sheet.notes) + "\n"] if sheet.notes else []
    return "\n".join(parts)
