"""The score tables in words: Tables 2 and 3, the table of sampling columns, and the long CSV.

Nothing of time or memory is in them, so the same runs make the same files to the byte.
"""

import csv
import io
from typing import Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.evaluate.tables import TITLES
from poweropd_lite.reproduce.results import MEASURES
from poweropd_lite.reproduce.rows import Block, Row, in_paper
from poweropd_lite.reproduce.sheets import Line, Sheet
from poweropd_lite.reproduce.state import Queue
from poweropd_lite.reproduce.stats import Stat

PAPER_TABLES = {"qwen3-0.6b-base": "Table 2", "qwen3-1.7b-base": "Table 3"}  # by student
COLUMN_TITLES = {
    "plain": "no truncation",
    "truncated-full": "truncated, score full",
    "truncated-sampled": "truncated, score sampled",
}
CSV_HEAD = "pair,student,teacher,teacher_bits,column,row,reward,alpha,benchmark,measure,n,mean,sd,low,high,paper,values,failed,waiting"


def score_sheets(queue: Queue, blocks: list[Block]) -> list[Sheet]:
    """Returns a table a pair and column, and for pairs with several columns, or bundled ones, the columns side by side."""
    sheets = [_sheet(queue, block) for block in blocks]
    for pair in dict.fromkeys(block.pair for block in blocks):
        mine = [block for block in blocks if block.pair == pair]
        if len(mine) > 1 or mine[0].values["student"] == BUNDLED:
            sheets.append(_columns_sheet(queue, mine))
    return sheets


def _title(queue: Queue, block: Block) -> str:
    student, teacher = _names(block.values)
    table = PAPER_TABLES.get(student.lower()) if in_paper(block.values) else None
    trains = ", every weight trained" if block.values["full_finetune"] else ""
    head = f"{table}: {student}" if table else student
    bits = f"({block.values['teacher_bits']}-bit)"
    return f"{head} <- {teacher} {bits}{trains}{_pair(queue, block)}, {COLUMN_TITLES[block.column]}"


def _names(values: dict[str, Any]) -> tuple[str, str]:
    return tuple(values[key].rstrip("/").rsplit("/", 1)[-1] for key in ("student", "teacher"))


def _pair(queue: Queue, block: Block) -> str:
    """The pair's own name, where another one is of models of the same names."""
    same = [pair for pair, values in queue.pairs.items() if _names(values) == _names(block.values)]
    return f", {block.pair}" if len(same) > 1 else ""


def _sheet(queue: Queue, block: Block) -> Sheet:
    n = block.n or queue.scoring["n"]
    head = ["reward", *(TITLES.get(name, name) for name in block.benchmarks), "of the teacher"]
    lines, theirs = [], in_paper(block.values)
    for row in block.rows:
        cells = [_label(row)]
        cells += [_cell(row, name) for name in block.benchmarks] or ([_state(row)] if not block.benchmarks else [])
        cells.append(f"{_with_interval(row.teacher_share, 1)}%" if row.teacher_share else "-")
        lines.append(Line(cells, "measured" if row.role == "run" else "model"))
        if theirs and row.role == "run":
            lines.append(Line(["paper", *(_paper_cell(row, name) for name in block.benchmarks), "-"], "paper"))
    if not block.benchmarks:
        head.insert(1, "scores")
    about = f"Avg@{n} in % / Pass@{n} in % / mean length in tokens, at temperature 0.6, untruncated."
    about += " 'paper' is the paper's own row: full fine-tuning, Avg@8 and Pass@8." if theirs else ""
    return Sheet(_title(queue, block), about, head, lines, _notes(queue, block))


def _label(row: Row) -> str:
    return f"`{row.label}`" if row.role == "run" else row.label


def _state(row: Row) -> str:
    return "failed" if row.failed and not row.waiting else "not run yet"


def _cell(row: Row, name: str) -> str:
    if name not in row.scores:
        return _state(row)
    found = row.scores[name]
    text = (
        f"{_with_interval(found['avg'], 2)} / {_with_interval(found['pass'], 2)} / {_with_interval(found['length'], 0)}"
    )
    lacking = [word for word, names in (("failed", row.failed), ("not run yet", row.waiting)) if names]
    return text + (f" ({row.seeds} of {row.seeds + len(row.failed) + len(row.waiting)} seeds)" if lacking else "")


def _paper_cell(row: Row, name: str) -> str:
    found = (row.paper or {}).get(name)
    return f"{found['avg@8']:.2f} / {found['pass@8']:.2f} / {found['length']:.0f}" if found else "-"


def _with_interval(found: Stat, digits: int) -> str:
    return f"{found.mean:.{digits}f}" + (f" ± {found.half:.{digits}f}" if found.half is not None else "")


def _columns_sheet(queue: Queue, blocks: list[Block]) -> Sheet:
    """The README's table: rewards by sampling columns."""
    student, teacher = _names(blocks[0].values)
    labels = list(dict.fromkeys(row.label for block in blocks for row in block.rows if row.role == "run"))
    lines = []
    for label in labels:
        cells = [f"`{label}`"]
        for block in blocks:
            row = next((row for row in block.rows if row.role == "run" and row.label == label), None)
            cells.append(_columns_cell(row, block.last) if row else "-")
        lines.append(Line(cells))
    n = next((block.n for block in blocks if block.n), queue.scoring["n"])
    about = f"Final Avg@{n} in % / share of answers that stop / largest gradient norm of any step."
    notes = list(dict.fromkeys(note for block in blocks for note in _notes(queue, block)))
    return Sheet(
        f"{student} <- {teacher}{_pair(queue, blocks[0])}: what sampling does",
        about,
        ["reward", *(COLUMN_TITLES[block.column] for block in blocks)],
        lines,
        notes,
    )


def _columns_cell(row: Row, last: str | None) -> str:
    if last not in row.scores:
        return _state(row)
    norm = f"{max(row.largest_norm.values.values()):.2f}" if row.largest_norm else "-"
    missing = len(row.failed) + len(row.waiting)
    text = f"{_with_interval(row.scores[last]['avg'], 1)} / {row.scores[last]['stop'].mean:.0f}% / {norm}"
    return text + (f" ({row.seeds} of {row.seeds + missing} seeds)" if missing else "")


def _notes(queue: Queue, block: Block) -> list[str]:
    runs = [row for row in block.rows if row.role == "run"]
    counts = sorted({row.seeds for row in runs if row.seeds})
    notes = []
    if any(count > 1 for count in counts):
        seeds = " or ".join(map(str, (count for count in counts if count > 1)))
        notes.append(
            f"± is half of the 95% Student-t interval of the mean over {seeds} seeds; base and teacher are scored once."
        )
    if 1 in counts:
        notes.append("A cell of one seed has no interval: one seed tells nothing of the spread.")
    if block.parts:
        left_out = ", ".join(TITLES.get(name, name) for name in block.parts)
        whole = "; the paper's are of the whole" if in_paper(block.values) else ""
        notes.append(f"Not the whole set: {left_out}{whole}.")
    if in_paper(block.values) and block.n not in (None, 8):
        notes.append(f"Pass@{block.n} is not the paper's Pass@8.")
    for name in (name for row in block.rows for name in row.failed):
        notes.append(f"Failed: {name}: {queue.runs[name]['message']}")
    if waiting := sum(len(row.waiting) for row in runs):
        notes.append(f"Not run yet: {waiting} of {waiting + sum(len(row.failed) + row.seeds for row in runs)} runs.")
    notes += [
        f"{row.dropped} steps of {row.label} were dropped (loss or gradient not finite)." for row in runs if row.dropped
    ]
    return notes


def score_csv(blocks: list[Block]) -> str:
    """Returns the long table: a line for every row, benchmark and measure; scores in percent, lengths in tokens."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD.split(","))
    for block in blocks:
        for row in block.rows:
            for name in block.benchmarks:
                for measure in MEASURES:
                    paper = (row.paper or {}).get(name, {}).get("length" if measure == "length" else f"{measure}@8")
                    writer.writerow(_csv_line(block, row, name, measure, row.scores.get(name, {}).get(measure), paper))
            writer.writerow(_csv_line(block, row, "", "teacher_share", row.teacher_share, None))
            if row.role == "run":
                writer.writerow(_csv_line(block, row, "", "largest_grad_norm", row.largest_norm, None))
    return out.getvalue()


def _csv_line(block: Block, row: Row, name: str, measure: str, found: Stat | None, paper: float | None) -> list[Any]:
    values = block.values
    head = [block.pair, values["student"], values["teacher"], values["teacher_bits"], block.column, row.label]
    head += [row.reward or "", _number(row.alpha), name, measure]
    tail = [_number(paper)]
    tail += [";".join(f"{seed}={_number(value)}" for seed, value in found.values.items()) if found else ""]
    tail += [" ".join(row.failed), " ".join(row.waiting)]
    if found is None:
        return [*head, 0, "", "", "", "", *tail]
    half = found.half
    bounds = (None, None) if half is None else (found.mean - half, found.mean + half)
    return [*head, found.n, *map(_number, (found.mean, found.sd, *bounds)), *tail]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
