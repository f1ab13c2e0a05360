"""Table 4: what an update costs. Operations from plan, seconds and memory from the runs' own steps."""

import statistics
from dataclasses import dataclass

from poweropd_lite.base.tables import number
from poweropd_lite.reproduce.grid import Task, short_names
from poweropd_lite.reproduce.rows import pair_names
from poweropd_lite.reproduce.settings import REWARDS
from poweropd_lite.reproduce.sheets import Sheet
from poweropd_lite.reproduce.state import Queue, Steps

# The paper's Table 4, of 0.6B <- 4B: TFLOPs an update, seconds a step, GiB at a batch of 8.
PAPER_COST = {
    "full_kl": {"paper_tflops": 402.7, "paper_seconds": 22.14, "paper_gib": 78.99},
    "power": {"paper_tflops": 346.6, "paper_seconds": 9.03, "paper_gib": 60.72},
}
PAPER_MODELS = ("qwen3-0.6b-base", "qwen3-4b")


@dataclass(frozen=True)
class Cost:
    """The steps of all finished runs of one reward, every alpha and seed, under one column: a line of cost.csv."""

    pair: str
    column: str
    reward: str
    runs: int
    steps: int
    seconds_median: float
    seconds_p05: float
    seconds_p95: float
    peak_gib: float
    planned_gib: float | None
    paper_convention_tflops: float | None  # of an update, counted as the paper does
    true_tflops: float | None  # of a step, as this program makes them (docs/plan.md)
    side_by_side: int  # the most processes at once while these were trained
    paper_tflops: float | None = None
    paper_seconds: float | None = None
    paper_gib: float | None = None


def make_costs(queue: Queue, steps: dict[str, Steps]) -> list[Cost]:
    """Returns the cost of each reward of each pair and column that has a finished run; `steps` by task."""
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in queue.tasks.values():
        if task.name in steps:
            groups.setdefault((task.pair, task.column, task.reward), []).append(task)
    order = pair_names(queue)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1], REWARDS.index(key[2])))
    return [_cost(queue, groups[key], [steps[task.name] for task in groups[key]]) for key in keys]


def _cost(queue: Queue, tasks: list[Task], runs: list[Steps]) -> Cost:
    first = tasks[0]
    forecast = queue.forecasts.get(first.pair, {}).get(first.kind)
    models = tuple(name.lower() for name in short_names(queue.pairs[first.pair]))
    seconds = sorted(second for run in runs for second in run.seconds)
    low, high = (seconds[round(share * (len(seconds) - 1))] for share in (0.05, 0.95))
    in_paper = models == PAPER_MODELS and first.column == "plain" and first.reward in PAPER_COST
    return Cost(
        pair=first.pair,
        column=first.column,
        reward=first.reward,
        runs=len(runs),
        steps=len(seconds),
        seconds_median=statistics.median(seconds),
        seconds_p05=low,
        seconds_p95=high,
        peak_gib=max(run.peak_gib for run in runs),
        planned_gib=max((run.planned_gib for run in runs if run.planned_gib), default=None),
        paper_convention_tflops=forecast.paper_tflops if forecast else None,
        true_tflops=forecast.tflops if forecast else None,
        side_by_side=max(task.side_by_side for task in tasks),
        **(PAPER_COST[first.reward] if in_paper else {}),
    )


def cost_sheet(costs: list[Cost]) -> Sheet:
    several = len({cost.column for cost in costs}) > 1
    rows = []
    for cost in costs:
        pair = f"{cost.pair}, {cost.column}" if several else cost.pair
        tflops = (number(t, ".1f" if t and t >= 1 else ".3g") for t in (cost.paper_convention_tflops, cost.true_tflops))
        measured = f"{cost.seconds_median:.3g}", f"{cost.peak_gib:.2f}"
        paper = "-"
        if cost.paper_gib:
            paper = f"{cost.paper_tflops:.1f} TFLOPs / {cost.paper_seconds:.2f} s / {cost.paper_gib:.2f} GiB (batch 8)"
        rows.append(("measured", [pair, f"`{cost.reward}`", *tflops, *measured, paper]))
    notes = []
    if (most := max((cost.side_by_side for cost in costs), default=1)) > 1:
        slower = f"Up to {most} runs were at work side by side, each slower for it and not all alike"
        notes.append(f"{slower}: rows are comparable where nothing ran beside (--jobs 1).")
    title = "Seconds and memory of an update"
    if any(cost.paper_gib for cost in costs):
        title = "Table 4: what an update costs"
        notes.append("The paper's are of full fine-tuning with a 16-bit teacher on its own cards; these are not.")
    about = (
        "TFLOPs by plan (docs/plan.md), for completions as long as the config allows; seconds are the median over all "
        "steps of all runs of the reward, whatever its alpha and seed; peak GiB the largest of them: what torch "
        "allocated on a card, the whole process on a CPU."
    )
    head = ["pair", "reward", "TFLOPs an update, the paper's way", "this program's"]
    head += ["seconds a step", "peak GiB", "paper"]
    return Sheet(title, about, head, rows, notes)
