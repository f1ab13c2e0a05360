"""The files of a queue's tables: tables.md, tables.csv, cost.md, cost.csv, tables.html."""

from poweropd_lite.base.files import write_text
from poweropd_lite.reproduce.cost import cost_csv, cost_sheet, costs
from poweropd_lite.reproduce.pages import page
from poweropd_lite.reproduce.rows import Reader
from poweropd_lite.reproduce.sheets import markdown
from poweropd_lite.reproduce.state import Queue
from poweropd_lite.reproduce.tables import score_csv, score_sheets

TITLE = "PowerOPD on one card: the paper's tables, measured"
FILES = ("tables.md", "tables.csv", "cost.md", "cost.csv", "tables.html")


def write_tables(queue: Queue) -> tuple[str, ...]:
    """Writes the tables of what is done so far; returns the files' names. Only cost.* and tables.html hold times."""
    reader = Reader(queue)
    blocks, spent = reader.blocks(), costs(reader)
    scores, cost = score_sheets(queue, blocks), cost_sheet(spent)
    pairs = queue.pairs.values()
    steps = ", ".join(sorted({f"{values['steps']:,} steps" for values in pairs}))
    about = [
        f"{steps} a run. The paper is arXiv 2606.17199; what is not comparable to it is in docs/reproduce.md. "
        "tables.csv has every number, cost.md what the runs took."
    ]
    texts = {
        "tables.md": markdown(scores, TITLE, about),
        "tables.csv": score_csv(blocks),
        "cost.md": markdown([cost], "What an update costs", ["Measured on the machine that ran the queue."]),
        "cost.csv": cost_csv(spent),
        "tables.html": page([*scores, cost], TITLE, about),
    }
    for name in FILES:
        write_text(queue.out / name, texts[name])
    return FILES
