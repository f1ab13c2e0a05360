"""An advice as one picture: who is paid, who carries the gradient, where in the completion, and where the gradient points."""

from pathlib import Path
from typing import Any

OWN, PLAIN, DARK = "#d55e00", "#56b4e9", "#0072b2"  # readable by the colour-blind
LINES = ("#0072b2", "#009e73", "#cc79a7", "#000000")


def draw_advice(report: dict[str, Any], file: Path) -> None:
    """Writes the picture as a PNG of four panels; the config's own reward is orange."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (paid, carried), (placed, pointed) = figure.subplots(2, 2)
    _paid(paid, report)
    _carried(carried, report)
    _placed(placed, report)
    _pointed(pointed, report)
    for axes in (paid, carried, placed, pointed):
        axes.spines[["top", "right"]].set_visible(False)
    own = (
        ""
        if report["reward"] == "full_kl"
        else f" (orange: {report['reward']}, the config's own; light: power rewards)"
    )
    figure.suptitle(
        f"{report['student']} <- {report['teacher']} ({report['teacher_bits']}-bit), {report['rollouts']} rollouts, "
        f"{report['tokens']:,} tokens{own}",
        fontsize="medium",
    )
    figure.savefig(file, dpi=130)


def _paid(axes: Any, report: dict[str, Any]) -> None:
    powers = [(float(name.split()[1]), row) for name, row in report["rewards"].items() if name.startswith("power ")]
    limit = report["settings"]["live_reward"]
    for key, name, colour in (
        ("live_share", f"tokens paid more than {limit:g} in size", LINES[0]),
        ("positive_mass", "share of sum |r| above zero", LINES[1]),
        ("effective_share", "tokens that carry the gradient, effectively", LINES[2]),
    ):
        points = [(alpha, 100 * row[key]) for alpha, row in powers if row[key] is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, label=name, markersize=4)
    if report["reward"].startswith("power "):
        axes.axvline(float(report["reward"].split()[1]), color=OWN, linewidth=6, alpha=0.25, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 140)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("alpha of the power reward")
    axes.set_ylabel("%")
    axes.set_title("who is paid", fontsize="medium")
    axes.legend(facecolor="white", framealpha=1.0, edgecolor="none", fontsize="small")


def _carried(axes: Any, report: dict[str, Any]) -> None:
    _bars(axes, report, {name: row["top_gradient"] for name, row in report["rewards"].items()}, 100.0)
    limit = 100 * report["settings"]["heavy_share"]
    axes.axvline(limit, color="0.4", linestyle="--", linewidth=1)
    axes.set_xlabel(f"share of the gradient that the top 1% of tokens carry, % (dashed: {limit:g})")
    axes.set_title("who carries the gradient", fontsize="medium")


def _placed(axes: Any, report: dict[str, Any]) -> None:
    wanted = ["power 1", "power 10", "power 100", "log_ratio"]
    rows = {name: row["by_decile"] for name, row in report["rewards"].items() if row["by_decile"]}
    others = [name for name in wanted if name in rows and name != report["reward"]]
    for name, colour in [*zip(others, LINES, strict=False), *[(n, OWN) for n in rows if n == report["reward"]]]:
        whole = report["rewards"][name]["mean_abs"]
        points = [(10 * i + 5, part["mean_abs"] / whole) for i, part in enumerate(rows[name]) if part and whole]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, label=name, markersize=4)
    axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("place in the completion, %")
    axes.set_ylabel("mean |r| there / mean |r|")
    axes.set_title("where the reward is", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")


def _pointed(axes: Any, report: dict[str, Any]) -> None:
    gradients = {name: row["gradient"] for name, row in report["rewards"].items()}
    _bars(axes, report, {name: g["cosine_full_kl"] for name, g in gradients.items() if name != "full_kl"}, 1.0)
    names = [label.get_text() for label in axes.get_yticklabels()]
    points = [(gradients[n]["cosine_between_batches"], i) for i, n in enumerate(names)]
    points = [point for point in points if point[0] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "k|", markersize=9, markeredgewidth=2, label="between two batches")
        axes.legend(frameon=False, fontsize="small")
    axes.axvline(0.0, color="0.4", linewidth=1)
    axes.set_xlabel("cosine of the gradient with full_kl's, on the same tokens")
    axes.set_title("where the gradient points", fontsize="medium")


def _bars(axes: Any, report: dict[str, Any], values: dict[str, float | None], scale: float) -> None:
    """One bar a reward, from the top down in the table's order."""
    known = {name: value for name, value in values.items() if value is not None}
    colours = [OWN if name == report["reward"] else PLAIN if name.startswith("power") else DARK for name in known]
    axes.barh(range(len(known)), [scale * value for value in known.values()], color=colours, height=0.7)
    axes.set_yticks(range(len(known)), list(known), fontsize="small")
    axes.invert_yaxis()
