"""An audit as one picture: flipped reward mass and correlation by alpha, with their limits."""

from pathlib import Path
from typing import Any

INK = {  # readable by the colour-blind
    "4-bit teacher": "#d55e00",
    "8-bit teacher": "#cc79a7",
    "16-bit teacher": "#0072b2",
    "32-bit teacher": "#000000",
}
STUDENT = "#009e73"


def draw_audit(report: dict[str, Any], file: Path) -> None:
    """Writes the picture as a PNG: the lines are the candidates, the bands 95% intervals, the dashes the limits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    limits = report["settings"]
    for name, rows in report["candidates"].items():
        colour = INK.get(name, STUDENT)
        _line(left, rows["rewards"], "flipped_mass", 100.0, name, colour)
        _line(right, rows["rewards"], "correlation", 1.0, name, colour)
    left.axhline(100 * limits["max_flipped_mass"], color="0.4", linestyle="--", linewidth=1, label="limit")
    right.axhline(limits["min_correlation"], color="0.4", linestyle="--", linewidth=1)
    left.set_ylabel("reward mass that changes its sign, %")
    right.set_ylabel("correlation with the full-precision rewards")
    left.set_ylim(bottom=0)
    right.set_ylim(top=1.005)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("alpha of the power reward")
        axes.spines[["top", "right"]].set_visible(False)
        if report["reward"].startswith("power "):
            axes.axvline(float(report["reward"].split()[1]), color="0.8", linewidth=6, zorder=0)
    left.legend(frameon=False, fontsize="small")
    own = f"grey: the config's own alpha; reward {report['reward']}, {report['teacher_bits']}-bit teacher"
    figure.suptitle(
        f"{report['student']} <- {report['teacher']}, {report['rollouts']} rollouts, {report['tokens']:,} tokens ({own})",
        fontsize="medium",
    )
    figure.savefig(file, dpi=150)


def _line(axes: Any, rewards: dict[str, Any], key: str, scale: float, name: str, colour: str) -> None:
    points = [(float(r.split()[1]), n) for r, n in rewards.items() if r.startswith("power ") and n[key] is not None]
    axes.plot([a for a, _ in points], [scale * n[key] for _, n in points], "o-", color=colour, label=name, markersize=4)
    banded = [(a, n["interval"][key]) for a, n in points if n["interval"][key] is not None]
    low, high = ([scale * bounds[i] for _, bounds in banded] for i in (0, 1))
    axes.fill_between([a for a, _ in banded], low, high, color=colour, alpha=0.15, linewidth=0)
