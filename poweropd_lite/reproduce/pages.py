"""The tables as one HTML page: readable on a phone and on paper, and nothing in it comes from the net."""

import html

from poweropd_lite.reproduce.sheets import Sheet

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 90rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
p, li { max-width: 46rem; } .about, ul { font-size: .9rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
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


def page(sheets: list[Sheet], title: str, about: list[str]) -> str:
    """Returns the whole page."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>",
        *(f"<p>{_text(line)}</p>" for line in about),
        *map(_section, sheets),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _section(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in sheet.head)
    body = "\n".join(
        f'<tr class="{line.kind}"><th scope="row">{_text(line.cells[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in line.cells[1:])
        + "</tr>"
        for line in sheet.lines
    )
    notes = "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in sheet.notes) + "</ul>" if sheet.notes else ""
    return (
        f'<section>\n<h2>{_text(sheet.title)}</h2>\n<p class="about">{_text(sheet.about)}</p>\n'
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n{notes}\n</section>'
    )


def _text(text: str) -> str:
    return html.escape(text.replace("`", ""))
