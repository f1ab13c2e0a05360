"""From tasks to rows: for every pair and column, each reward over its seeds, with the paper's beside. No text yet.

Intervals over seeds are those of base/intervals.py.
"""

from dataclasses import dataclass
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import PAPER_PAIRS
from poweropd_lite.base.intervals import Stat, stat
from poweropd_lite.evaluate.paper import paper_row
from poweropd_lite.reproduce.grid import DONE, FAILED, Task, run_config
from poweropd_lite.reproduce.settings import BESIDE, COLUMNS, REWARDS, TRUNCATED
from poweropd_lite.reproduce.state import MEASURES, Queue, Results

SHARE, NORM = ("", "teacher_share"), ("", "largest_grad_norm")  # percent of the teacher's Avg@n; of any step


@dataclass(frozen=True)
class Row:
    """One reward (or base, or teacher) of a pair under a column of the grid."""

    label: str  # power 10, log_ratio, base
    tasks: list[Task]  # over the seeds
    failed: list[str]  # their names
    waiting: list[str]
    stats: dict[tuple[str, str], Stat]  # by benchmark and measure; SHARE and NORM are of no benchmark
    paper: dict[str, dict[str, float]]  # by benchmark: avg@8, pass@8, length
    dropped: int  # optimizer steps

    @property
    def done(self) -> int:
        return len(self.tasks) - len(self.failed) - len(self.waiting)


@dataclass(frozen=True)
class Block:
    """The rows of one pair under one column."""

    name: str  # the pair's
    pair: Config
    column: str
    benchmarks: list[str]  # the mean last, where there are several
    n: int | None  # samples a problem; None before anything was scored
    parts: list[str]  # benchmarks of which problems were left out
    models: list[Row]
    runs: list[Row]
    in_paper: bool  # whether the paper has the pair


def pair_names(queue: Queue) -> list[str]:
    """Returns the pairs' names, in the paper's order."""
    return list(dict.fromkeys([*(name for name in PAPER_PAIRS if name in queue.pairs), *queue.pairs]))


def make_blocks(queue: Queue, results: Results) -> list[Block]:
    """Returns every pair under every column of which there are runs, in the paper's order."""
    beside = any(column in BESIDE for column in queue.axes["columns"])  # whose rows stand below those of plain
    columns = [column for column in COLUMNS if column in queue.axes["columns"] or (beside and column == "plain")]
    blocks = [_block(queue, name, column, results) for name in pair_names(queue) for column in columns]
    return [block for block in blocks if block.runs]


def _block(queue: Queue, name: str, column: str, results: Results) -> Block:
    columns = ("", column, *BESIDE) if column == "plain" else ("", column, TRUNCATED)
    tasks = [task for task in queue.tasks.values() if name in task.pairs and task.column in columns]
    scores = results.scores
    found = [scores[task.name] for task in tasks if task.name in scores]
    benchmarks = list(dict.fromkeys(b for one in found for b in one.benchmarks if b != "mean"))
    benchmarks += ["mean"] if len(benchmarks) > 1 else []
    teacher = next((scores[t.name].benchmarks for t in tasks if t.role == "teacher" and t.name in scores), {})
    best = teacher.get(benchmarks[-1], {}).get("avg") if benchmarks else None
    pair = queue.pairs[name]
    groups: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=_order):
        groups.setdefault(task.label, []).append(task)
    rows = [_row(pair, group, benchmarks, best, results) for group in groups.values()]
    models = [row for row in rows if row.tasks[0].role != "run"]
    runs = [row for row in rows if row.tasks[0].role == "run"]
    n, parts = found[0].n if found else None, sorted({part for one in found for part in one.parts})
    return Block(name, pair, column, benchmarks, n, parts, models, runs, in_paper=paper_row(pair) is not None)


def _row(pair: Config, tasks: list[Task], benchmarks: list[str], best: float | None, results: Results) -> Row:
    scored = {task.seed: results.scores[task.name].benchmarks for task in tasks if task.name in results.scores}
    trained = {task.seed: results.steps[task.name] for task in tasks if task.name in results.steps}
    values = {(b, m): {s: row[b][m] for s, row in scored.items() if b in row} for b in benchmarks for m in MEASURES}
    if best and tasks[0].role != "teacher":
        values[SHARE] = {seed: 100 * average / best for seed, average in values[benchmarks[-1], "avg"].items()}
    values[NORM] = {seed: max(run.norms) for seed, run in trained.items() if run.norms}
    stats = {key: over_seeds for key, by_seed in values.items() if (over_seeds := stat(by_seed))}
    failed = [task.name for task in tasks if task.state == FAILED]
    waiting = [task.name for task in tasks if task.state not in (DONE, FAILED)]
    dropped = sum(run.dropped for run in trained.values())
    return Row(tasks[0].label, tasks, failed, waiting, stats, _paper_scores(pair, tasks[0], benchmarks), dropped)


def _paper_scores(pair: Config, task: Task, benchmarks: list[str]) -> dict[str, dict[str, float]]:
    """The paper's values of this very reward and alpha; its mean only where the same benchmarks were scored."""
    row = paper_row(run_config(pair, task)) if task.role == "run" else None
    if row is None or not row.exact:
        return {}
    same = set(row.benchmarks) == set(benchmarks) - {"mean"}
    return row.benchmarks | ({"mean": row.mean} if same else {})


def _order(task: Task) -> tuple[Any, ...]:
    reward = REWARDS.index(task.reward) if task.reward else -1
    beside = [*BESIDE].index(task.column) + 1 if task.column in BESIDE else 0
    return ("base", "teacher", "run").index(task.role), beside, reward, task.alpha or 0.0, task.seed
