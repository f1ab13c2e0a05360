"""From runs to rows: for every pair and column, each reward's scores over seeds, with the paper's own beside. No text yet."""

from dataclasses import dataclass, field
from typing import Any

from poweropd_lite.base.config import load_config
from poweropd_lite.evaluate.paper import paper_row
from poweropd_lite.reproduce.grid import Task, row_label
from poweropd_lite.reproduce.results import MEASURES, Scores, Steps, read_scores, read_steps
from poweropd_lite.reproduce.settings import COLUMNS, PAPER_PAIRS, REWARDS, TRUNCATED
from poweropd_lite.reproduce.state import DONE, FAILED, Queue
from poweropd_lite.reproduce.stats import Stat, stat

Paper = dict[str, dict[str, float]]  # by benchmark: avg@8, pass@8, length


@dataclass(frozen=True)
class Row:
    """One reward (or base, or teacher) of a pair under a column of the grid."""

    label: str
    role: str
    reward: str | None
    alpha: float | None
    scores: dict[str, dict[str, Stat]]  # by benchmark and measure
    teacher_share: Stat | None  # percent of the teacher's Avg@n
    largest_norm: Stat | None
    paper: Paper | None
    failed: list[str] = field(default_factory=list)  # names of runs
    waiting: list[str] = field(default_factory=list)
    dropped: int = 0  # optimizer steps

    @property
    def seeds(self) -> int:
        """How many of its runs are done."""
        return next(iter(next(iter(self.scores.values())).values())).n if self.scores else 0


@dataclass(frozen=True)
class Block:
    """The rows of one pair under one column."""

    pair: str
    column: str
    values: dict[str, Any]  # the pair's settings
    benchmarks: list[str]  # the mean last, where there are several
    n: int | None  # samples a problem; None before anything was scored
    parts: list[str]  # benchmarks of which problems were left out
    rows: list[Row]

    @property
    def last(self) -> str | None:
        """The column that stands for all: the mean, or the only benchmark."""
        return self.benchmarks[-1] if self.benchmarks else None


class Reader:
    """Reads each run once."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        done = [task for task in queue.tasks() if queue.runs[task.name]["state"] == DONE]
        found = {task.name: read_scores(queue.out, task, queue.steps(task)) for task in done}
        self.scores: dict[str, Scores] = {name: scores for name, scores in found.items() if scores}
        self.steps: dict[str, Steps] = {t.name: read_steps(queue.out, t) for t in done if t.role == "run"}

    def blocks(self) -> list[Block]:
        """Returns every pair under every column, in the paper's order."""
        names = sorted(self.queue.pairs, key=lambda p: PAPER_PAIRS.index(p) if p in PAPER_PAIRS else len(PAPER_PAIRS))
        columns = [column for column in COLUMNS if column in self.queue.axes["columns"]]
        found = [self._block(pair, column) for pair in names for column in columns]
        return [block for block in found if any(row.role == "run" for row in block.rows)]

    def _block(self, pair: str, column: str) -> Block:
        tasks = [task for task in self.queue.tasks() if pair in task.pairs and _stands_in(task, column)]
        found = [self.scores[task.name] for task in tasks if task.name in self.scores]
        names = list(dict.fromkeys(name for scores in found for name in scores.benchmarks if name != "mean"))
        names += ["mean"] if len(names) > 1 else []
        parts = sorted({name for scores in found for name, whole in scores.whole.items() if not whole})
        teacher = next((self.scores.get(task.name) for task in tasks if task.role == "teacher"), None)
        groups: dict[tuple, list[Task]] = {}
        for task in sorted(tasks, key=_order):
            groups.setdefault((task.role, task.reward, task.alpha), []).append(task)
        rows = [self._row(pair, group, names, teacher) for group in groups.values()]
        n = found[0].n if found else None
        return Block(pair, column, self.queue.pairs[pair], names, n, parts, rows)

    def _row(self, pair: str, tasks: list[Task], names: list[str], teacher: Scores | None) -> Row:
        first = tasks[0]
        here = {task.seed or 0: self.scores[task.name] for task in tasks if task.name in self.scores}
        scores = {
            name: {
                m: stat({seed: s.benchmarks[name][m] for seed, s in here.items() if name in s.benchmarks})
                for m in MEASURES
            }
            for name in names
        }
        last = names[-1] if names else None
        share = None
        if first.role != "teacher" and teacher and last in teacher.benchmarks and teacher.benchmarks[last]["avg"]:
            best = teacher.benchmarks[last]["avg"]
            share = stat(
                {seed: 100 * s.benchmarks[last]["avg"] / best for seed, s in here.items() if last in s.benchmarks}
            )
        norms = {t.seed: self.steps[t.name].largest_norm for t in tasks if t.name in self.steps}
        return Row(
            label=row_label(first.reward, first.alpha) if first.role == "run" else first.role,
            role=first.role,
            reward=first.reward,
            alpha=first.alpha,
            scores={name: found for name, found in scores.items() if all(found.values())},
            teacher_share=share,
            largest_norm=stat({seed: norm for seed, norm in norms.items() if norm is not None}),
            paper=self._paper(pair, first, names),
            failed=[t.name for t in tasks if self.queue.runs[t.name]["state"] == FAILED],
            waiting=[t.name for t in tasks if self.queue.runs[t.name]["state"] not in (DONE, FAILED)],
            dropped=sum(self.steps[t.name].dropped for t in tasks if t.name in self.steps),
        )

    def _paper(self, pair: str, task: Task, names: list[str]) -> Paper | None:
        """The paper's values of this very reward and alpha; its mean only where the same benchmarks were scored."""
        if task.role != "run":
            return None
        row = paper_row(load_config(**self.queue.pairs[pair], **task.settings()))
        if row is None or not row.exact:
            return None
        same = set(row.benchmarks) == set(names) - {"mean"}
        return {**row.benchmarks, **({"mean": row.mean} if same else {})}


def in_paper(values: dict[str, Any]) -> bool:
    """Whether the paper has a pair at all."""
    return paper_row(load_config(**values)) is not None


def _stands_in(task: Task, column: str) -> bool:
    if task.role != "run":
        return True
    return task.column == column or (task.column == TRUNCATED and column != "plain")


def _order(task: Task) -> tuple:
    role = ("base", "teacher", "run").index(task.role)
    return role, REWARDS.index(task.reward) if task.reward else -1, task.alpha or 0.0, task.seed or 0
