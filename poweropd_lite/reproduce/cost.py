"""Table 4: what an update costs. Operations from plan, seconds and memory from the runs' own steps."""

import csv
import io
import statistics
from dataclasses import dataclass

from poweropd_lite.reproduce.estimate import plan_key
from poweropd_lite.reproduce.grid import Task
from poweropd_lite.reproduce.rows import Reader
from poweropd_lite.reproduce.settings import PAPER_PAIRS, REWARDS
from poweropd_lite.reproduce.sheets import Line, Sheet

# The paper's Table 4, of 0.6B <- 4B: TFLOPs an update, seconds a step, GiB at a batch of 8.
PAPER_COST = {"full_kl": (402.7, 22.14, 78.99), "power": (346.6, 9.03, 60.72)}
PAPER_MODELS = ("qwen3-0.6b-base", "qwen3-4b")
CSV_HEAD = "pair,column,reward,runs,steps,seconds_median,seconds_p05,seconds_p95,peak_gib,planned_gib,paper_convention_tflops,true_tflops,side_by_side,paper_tflops,paper_seconds,paper_gib"


@dataclass(frozen=True)
class Cost:
    """The steps of all finished runs of one reward, every alpha and seed, under one column."""

    pair: str
    column: str
    reward: str
    runs: int
    seconds: list[float]
    peak_gib: float
    planned_gib: float | None
    convention_tflops: float | None  # of an update, counted as the paper does
    true_tflops: float | None  # of a step, as this program makes them (docs/plan.md)
    side_by_side: int  # the most runs at once while these were trained
    paper: tuple[float, float, float] | None


def costs(reader: Reader) -> list[Cost]:
    """Returns the cost of each reward of each pair and column that has a finished run."""
    groups: dict[tuple, list[Task]] = {}
    for task in reader.queue.tasks():
        if task.name in reader.steps and reader.steps[task.name].seconds:
            groups.setdefault((task.pair, task.column, task.reward), []).append(task)
    names = list(dict.fromkeys([*(p for p in PAPER_PAIRS if p in reader.queue.pairs), *reader.queue.pairs]))
    order = sorted(groups, key=lambda key: (names.index(key[0]), key[1], REWARDS.index(key[2])))
    return [_cost(reader, key, groups[key]) for key in order]


def _cost(reader: Reader, key: tuple[str, str, str], tasks: list[Task]) -> Cost:
    pair, column, reward = key
    queue = reader.queue
    plan = queue.plans.get(plan_key(tasks[0])) or {}
    values = queue.pairs[pair]
    models = tuple(values[role].rstrip("/").rsplit("/", 1)[-1].lower() for role in ("student", "teacher"))
    convention = plan.get("paper_tflops", {}).get("full_vocabulary" if reward == "full_kl" else "update")
    return Cost(
        pair,
        column,
        reward,
        len(tasks),
        [second for task in tasks for second in reader.steps[task.name].seconds],
        max(reader.steps[task.name].peak_gib for task in tasks),
        max((gib for task in tasks if (gib := reader.steps[task.name].planned_gib)), default=None),
        convention,
        sum(plan["tflops"].values()) if plan else None,
        max(queue.runs[task.name].get("side_by_side", 1) for task in tasks),
        PAPER_COST.get(reward) if models == PAPER_MODELS and column == "plain" else None,
    )


def cost_sheet(found: list[Cost]) -> Sheet:
    """Returns Table 4."""
    head = [
        "pair",
        "reward",
        "TFLOPs an update, the paper's way",
        "this program's",
        "seconds a step",
        "peak GiB",
        "paper",
    ]
    several = len({cost.column for cost in found}) > 1
    lines = []
    for cost in found:
        paper = "-"
        if cost.paper:
            paper = "{:.1f} TFLOPs / {:.2f} s / {:.2f} GiB (batch 8)".format(*cost.paper)
        pair = f"{cost.pair}, {cost.column}" if several else cost.pair
        seconds = f"{statistics.median(cost.seconds):.3g}"
        numbers = [_tflops(cost.convention_tflops), _tflops(cost.true_tflops), seconds, f"{cost.peak_gib:.2f}", paper]
        lines.append(Line([pair, f"`{cost.reward}`", *numbers]))
    about = (
        "TFLOPs by plan (docs/plan.md), for completions as long as the config allows; seconds are the median over all steps of all runs of the "
        "reward, whatever its alpha and seed; peak GiB the largest of them: what torch allocated on a card, the whole process on a CPU."
    )
    notes = []
    if (most := max((cost.side_by_side for cost in found), default=1)) > 1:
        notes.append(
            f"Up to {most} runs were at work side by side, each slower for it and not all alike: rows are comparable where nothing ran beside (--jobs 1)."
        )
    if any(cost.paper for cost in found):
        notes.append("The paper's are of full fine-tuning with a 16-bit teacher on its own cards; these are not.")
    return Sheet("Table 4: what an update costs", about, head, lines, notes)


def cost_csv(found: list[Cost]) -> str:
    """Returns a line for every pair, column and reward."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD.split(","))
    for cost in found:
        ordered = sorted(cost.seconds)
        marks = [ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.95)]
        numbers = [
            statistics.median(ordered),
            *marks,
            cost.peak_gib,
            cost.planned_gib,
            cost.convention_tflops,
            cost.true_tflops,
        ]
        texts = ["" if value is None else f"{value:.6g}" for value in numbers]
        paper = cost.paper or ("", "", "")
        writer.writerow(
            [cost.pair, cost.column, cost.reward, cost.runs, len(ordered), *texts, cost.side_by_side, *paper]
        )
    return out.getvalue()


def _tflops(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 1 else f"{value:.3g}"
