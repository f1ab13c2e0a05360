"""A table of texts as Markdown, as HTML that is readable on a phone and on paper, and rows as CSV."""

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from poweropd_lite.base.tables import markdown_table

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 90rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; } p, li { max-width: 46rem; }
.about, ul { font-size: .9rem; } .wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: Canvas; font-weight: 600; }
tr.paper td, tr.paper th { color: GrayText; font-weight: 400; } tr.model { background: var(--soft); }
@media print {
  @page { size: landscape; margin: 12mm; }
  body { font-size: 9pt; margin: 0; max-width: none; } table { font-size: 7.5pt; }
  .wide { overflow: visible; border: 0; } tr, h2 { break-inside: avoid; } h2, .about { break-after: avoid; }
  tbody th { position: static; }
}
"""


@dataclass(frozen=True)
class Sheet:
    """One table: a title, a sentence or two on how to read it, the head, the rows, and notes below."""

    title: str
    about: str
    head: list[str]
    rows: list[tuple[str, list[str]]]  # the kind (measured, paper, model) and the cells
    notes: list[str] = field(default_factory=list)


def markdown(sheets: Iterable[Sheet], title: str, about: str) -> str:
    parts = [f"# {title}\n", f"{about}\n"]
    for sheet in sheets:
        rows = [[cell.replace("|", "\\|") for cell in cells] for cells in (sheet.head, *(row[1] for row in sheet.rows))]
        parts += [f"## {sheet.title}\n", f"{sheet.about}\n", markdown_table(rows)]
        parts += ["\n".join(f"- {note}" for note in sheet.notes) + "\n"] if sheet.notes else []
    return "\n".join(parts)


def page(sheets: Iterable[Sheet], title: str, about: str) -> str:
    """Returns tables as one HTML page; nothing in it comes from the net."""
    head = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>",
        f"<p>{_text(about)}</p>",
    ]
    return "\n".join([*head, *map(_section, sheets), "</body>\n</html>\n"])


def _section(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in sheet.head)
    lines = []
    for kind, (label, *cells) in sheet.rows:
        columns = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        lines.append(f'<tr class="{kind}"><th scope="row">{_text(label)}</th>{columns}</tr>')
    notes = "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in sheet.notes) + "</ul>" if sheet.notes else ""
    return (
        f'<section>\n<h2>{_text(sheet.title)}</h2>\n<p class="about">{_text(sheet.about)}</p>\n'
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody></table></div>\n{notes}\n</section>"
    )


def _text(text: str) -> str:
    return html.escape(text.replace("`", ""))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]], digits: int) -> str:
    """Returns rows as CSV; floats in so many digits, None as nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([f"{cell:.{digits}g}" if isinstance(cell, float) else cell for cell in row])
    return out.getvalue()
