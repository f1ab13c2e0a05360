"""An audit as one picture: flipped reward mass and what the correlation lacks of 1, by alpha, with their limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

INK = {  # readable by the colour-blind
    "4-bit teacher": "#d55e00",
    "8-bit teacher": "#cc79a7",
    "16-bit teacher": "#0072b2",
    "32-bit teacher": "#000000",
}
STUDENT = "#009e73"
FLOOR = 1e-6  # what is smaller, such as 0, is drawn here: both scales are logarithmic


def draw_audit(report: dict[str, Any], file: Path) -> None:
    """Writes the picture as a PNG: the lines are the candidates, the bands 95% intervals, the dashes the limits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    limits = report["settings"]
    for name, rows in report["candidates"].items():
        colour = INK.get(name, STUDENT)
        _line(left, rows["rewards"], "flipped_mass", lambda share: share, name, colour)
        _line(right, rows["rewards"], "correlation", lambda r: 1.0 - r, name, colour)
    left.axhline(max(limits["max_flipped_mass"], FLOOR), color="0.4", linestyle="--", linewidth=1, label="limit")
    right.axhline(max(1.0 - limits["min_correlation"], FLOOR), color="0.4", linestyle="--", linewidth=1)
    left.set_ylabel("share of the reward mass that changes its sign")
    right.set_ylabel("1 - correlation with the full-precision rewards")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(FLOOR / 1.5, 1.5)
        axes.set_yticks(
            [FLOOR * 10**i for i in range(7)], ["0, or under\n1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
        )
        axes.set_xlabel("alpha of the power reward")
        axes.spines[["top", "right"]].set_visible(False)
        if report["reward"].startswith("power "):
            axes.axvline(float(report["reward"].split()[1]), color="0.85", linewidth=6, zorder=0)
    left.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0.0, 0.78))
    figure.suptitle(
        f"{report['student']} <- {report['teacher']}, {report['rollouts']} rollouts, {report['tokens']:,} tokens; lower is better "
        + (
            f"(grey: {report['reward']}, the config's own, with a {report['teacher_bits']}-bit teacher)"
            if report["reward"].startswith("power ")
            else f"({report['reward']}, the config's own, is in the table)"
        ),
        fontsize="medium",
    )
    figure.savefig(file, dpi=150)


def _line(axes: Any, rewards: dict[str, Any], key: str, shown: Callable, name: str, colour: str) -> None:
    points = [(float(r.split()[1]), n) for r, n in rewards.items() if r.startswith("power ") and n[key] is not None]
    heights = [max(shown(n[key]), FLOOR) for _, n in points]
    axes.plot([a for a, _ in points], heights, "o-", color=colour, label=name, markersize=4)
    banded = [(a, sorted(max(shown(x), FLOOR) for x in n["interval"][key])) for a, n in points if n["interval"][key]]
    low, high = ([bounds[i] for _, bounds in banded] for i in (0, 1))
    axes.fill_between([a for a, _ in banded], low, high, color=colour, alpha=0.15, linewidth=0)
