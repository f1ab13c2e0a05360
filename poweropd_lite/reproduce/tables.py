"""The files of tables: Tables 2 and 3, the table of sampling columns, and the long CSV; beside them cost.py's.

Nothing of time or memory is in tables.md and tables.csv, so the same runs make the same files to the byte.
"""

from dataclasses import astuple, fields
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.files import write_text
from poweropd_lite.evaluate.tables import TITLES
from poweropd_lite.reproduce.cost import Cost, cost_sheet, make_costs
from poweropd_lite.reproduce.grid import short_names
from poweropd_lite.reproduce.rows import NORM, SHARE, Block, Row, Stat, make_blocks
from poweropd_lite.reproduce.settings import COLUMNS
from poweropd_lite.reproduce.sheets import Sheet, csv_text, markdown, page
from poweropd_lite.reproduce.state import MEASURES, Queue, read_results

TITLE = "PowerOPD on one card: the paper's tables, measured"
OWN_TITLE = "Rewards compared, measured"  # of pairs that the paper has no table of
PAPER_TABLES = {"qwen3-0.6b-base": "Table 2: ", "qwen3-1.7b-base": "Table 3: "}  # by student
COLUMN_TITLES = dict(zip(COLUMNS, ("no truncation", "truncated, score full", "truncated, score sampled"), strict=True))
CSV_HEAD = (
    *("pair", "student", "teacher", "teacher_bits", "column", "row", "reward", "alpha", "benchmark", "measure"),
    *("n", "mean", "sd", "low", "high", "paper", "values", "failed", "waiting"),
)


def write_tables(queue: Queue) -> tuple[str, ...]:
    """Writes the tables of what is done so far; returns the files' names. Only cost.* and tables.html hold times."""
    results = read_results(queue)
    blocks, costs = make_blocks(queue, results), make_costs(queue, results.steps)
    scores, cost = score_sheets(queue, blocks), cost_sheet(costs)
    steps = ", ".join(sorted({f"{pair.steps:,} steps" for pair in queue.pairs.values()}))
    title, about = OWN_TITLE, f"{steps} a run. "
    if any(block.in_paper for block in blocks):
        title = TITLE
        about += "The paper is arXiv 2606.17199; what is not comparable to it is in docs/reproduce.md. "
    about += "tables.csv has every number, cost.md what the runs took."
    texts = {
        "tables.md": markdown(scores, title, about),
        "tables.csv": csv_text(CSV_HEAD, [line for block in blocks for line in _csv_lines(block)], digits=10),
        "cost.md": markdown([cost], "What an update costs", "Measured on the machine that ran the queue."),
        "cost.csv": csv_text([part.name for part in fields(Cost)], map(astuple, costs), digits=6),
        "tables.html": page([*scores, cost], title, about),
    }
    for name, text in texts.items():
        write_text(queue.out / name, text)
    return tuple(texts)


def score_sheets(queue: Queue, blocks: list[Block]) -> list[Sheet]:
    """Returns a table a pair and column; for pairs of several columns, or bundled ones, these side by side too."""
    sheets = [_sheet(queue, block) for block in blocks]
    for name in dict.fromkeys(block.name for block in blocks):
        same = [block for block in blocks if block.name == name]
        if len(same) > 1 or same[0].pair.student == BUNDLED:
            sheets.append(_columns_sheet(queue, same))
    return sheets


def _sheet(queue: Queue, block: Block) -> Sheet:
    n = block.n or queue.scoring["n"]
    head = ["reward", *([TITLES.get(b, b) for b in block.benchmarks] or ["scores"]), "of the teacher"]
    rows = []
    for row in (*block.models, *block.runs):
        cells = [_cell(row, b) for b in block.benchmarks] or [_state(row)]
        cells.append(f"{_with_interval(row.stats[SHARE], 1)}%" if SHARE in row.stats else "-")
        kind, label = ("model", row.label) if row in block.models else ("measured", f"`{row.label}`")
        rows.append((kind, [label, *cells]))
        if block.in_paper and kind == "measured":
            cell = "{avg@8:.2f} / {pass@8:.2f} / {length:.0f}"
            paper = [cell.format_map(row.paper[b]) if b in row.paper else "-" for b in block.benchmarks]
            rows.append(("paper", ["paper", *paper, "-"]))
    about = f"Avg@{n} in % / Pass@{n} in % / mean length in tokens, at temperature 0.6, untruncated."
    about += " 'paper' is the paper's own row: full fine-tuning, Avg@8 and Pass@8." if block.in_paper else ""
    student, teacher = short_names(block.pair)
    table = PAPER_TABLES[student.lower()] if block.in_paper else ""
    bits = f"({block.pair.teacher_bits}-bit)" + ", every weight trained" * block.pair.full_finetune
    title = f"{table}{student} <- {teacher} {bits}{_own_name(queue, block)}, {COLUMN_TITLES[block.column]}"
    return Sheet(title, about, head, rows, _notes(queue, block))


def _own_name(queue: Queue, block: Block) -> str:
    """The pair's own name, where another one is of models of the same names."""
    same = [pair for pair in queue.pairs.values() if short_names(pair) == short_names(block.pair)]
    return f", {block.name}" if len(same) > 1 else ""


def _state(row: Row) -> str:
    return "failed" if row.failed and not row.waiting else "not run yet"


def _cell(row: Row, benchmark: str) -> str:
    if (benchmark, "avg") not in row.stats:
        return _state(row)
    digits = {"avg": 2, "pass": 2, "length": 0}
    return " / ".join(_with_interval(row.stats[benchmark, m], d) for m, d in digits.items()) + _of_seeds(row)


def _of_seeds(row: Row) -> str:
    return f" ({row.done} of {len(row.tasks)} seeds)" if row.failed or row.waiting else ""


def _with_interval(found: Stat, digits: int) -> str:
    return f"{found.mean:.{digits}f}" + (f" ± {found.half:.{digits}f}" if found.half is not None else "")


def _columns_sheet(queue: Queue, blocks: list[Block]) -> Sheet:
    """The table of docs/sampling.md: rewards by sampling columns."""
    first, labels = blocks[0], dict.fromkeys(row.label for block in blocks for row in block.runs)
    columns = [{row.label: _columns_cell(row, block) for row in block.runs} for block in blocks]
    student, teacher = short_names(first.pair)
    n = next((block.n for block in blocks if block.n), queue.scoring["n"])
    return Sheet(
        f"{student} <- {teacher}{_own_name(queue, first)}: {'what sampling does' if len(blocks) > 1 else 'how runs ended'}",
        f"Final Avg@{n} in % / share of answers that stop / largest gradient norm of any step.",
        ["reward", *(COLUMN_TITLES[block.column] for block in blocks)],
        [("measured", [f"`{label}`", *(cells.get(label, "-") for cells in columns)]) for label in labels],
        list(dict.fromkeys(note for block in blocks for note in _notes(queue, block))),
    )


def _columns_cell(row: Row, block: Block) -> str:
    last = block.benchmarks[-1] if block.benchmarks else ""  # the mean, or the only one
    if (last, "avg") not in row.stats:
        return _state(row)
    norm = f"{max(row.stats[NORM].values.values()):.2f}" if NORM in row.stats else "-"
    return f"{_with_interval(row.stats[last, 'avg'], 1)} / {row.stats[last, 'stop'].mean:.0f}% / {norm}{_of_seeds(row)}"


def _notes(queue: Queue, block: Block) -> list[str]:
    counts = sorted({row.done for row in block.runs if row.done})
    notes = []
    if several := " or ".join(str(count) for count in counts if count > 1):
        interval = f"± is half of the 95% Student-t interval of the mean over {several} seeds"
        notes.append(f"{interval}; base and teacher are scored once.")
    if 1 in counts:
        notes.append("A cell of one seed has no interval: one seed tells nothing of the spread.")
    if block.parts:
        whole = "; the paper's are of the whole" if block.in_paper else ""
        notes.append(f"Not the whole set: {', '.join(TITLES.get(b, b) for b in block.parts)}{whole}.")
    if block.in_paper and block.n not in (None, 8):
        notes.append(f"Pass@{block.n} is not the paper's Pass@8.")
    failed = [name for row in (*block.models, *block.runs) for name in row.failed]
    notes += [f"Failed: {name}: {queue.tasks[name].message}" for name in failed]
    if waiting := sum(len(row.waiting) for row in block.runs):
        notes.append(f"Not run yet: {waiting} of {sum(len(row.tasks) for row in block.runs)} runs.")
    dropped = {row.label: row.dropped for row in block.runs if row.dropped}
    where = "were dropped (optim/skipped in metrics.jsonl)"
    return notes + [f"{n} steps of {label} {where}." for label, n in dropped.items()]


def _csv_lines(block: Block) -> list[list[Any]]:
    """A line for every row, benchmark and measure; scores in percent, lengths in tokens."""
    pair, lines = block.pair, []
    for row in (*block.models, *block.runs):
        keys = [(b, measure) for b in block.benchmarks for measure in MEASURES]
        for key in (*keys, SHARE, *([NORM] if row in block.runs else [])):
            name, measure = key
            paper = row.paper.get(name, {}).get("length" if measure == "length" else f"{measure}@8")
            found, first = row.stats.get(key), row.tasks[0]
            half = found.half if found else None
            ends = [found.mean - half, found.mean + half] if found and half is not None else [None, None]
            numbers = [len(found.values), found.mean, found.sd] if found else [0, None, None]
            values = ";".join(f"{seed}={value:.10g}" for seed, value in found.values.items()) if found else ""
            head = [block.name, pair.student, pair.teacher, pair.teacher_bits, block.column, row.label]
            cells = [first.reward, first.alpha, name, measure, *numbers, *ends, paper, values]
            lines.append([*head, *cells, " ".join(row.failed), " ".join(row.waiting)])
    return lines
