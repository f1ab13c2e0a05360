"""An audit as one picture: flipped reward mass and what the correlation lacks of 1, by alpha, with their limits."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poweropd_lite.rehearse.audit_report import AuditReport, Candidate
from poweropd_lite.rehearse.report import subject

TEACHERS = {4: "#d55e00", 8: "#cc79a7", 16: "#0072b2", 32: "#000000"}  # by bits, readable by the colour-blind
STUDENT = "#009e73"
FLOOR = 1e-6  # what is smaller, such as 0, is drawn here: both scales are logarithmic


def draw_audit(report: AuditReport, file: Path) -> None:
    """Writes the picture as a PNG: the lines are the candidates, the bands 95% intervals, the dashes the limits."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    limits, candidates = report["settings"], report["candidates"]
    alpha = next(iter(candidates.values()))["rewards"][report["own"]]["alpha"]
    left, right = figure.subplots(1, 2)
    for axes, key, limit, what in (
        (left, "flipped_mass", limits["max_flipped_mass"], "share of the reward mass that changes its sign"),
        (right, "correlation", 1.0 - limits["min_correlation"], "1 - correlation with the full-precision rewards"),
    ):
        for name, candidate in candidates.items():
            _line(axes, candidate, key, name)
        axes.axhline(max(limit, FLOOR), color="0.4", linestyle="--", linewidth=1, label="limit")
        axes.set(xscale="log", yscale="log", ylim=(FLOOR / 1.5, 1.5), xlabel="alpha of the power reward", ylabel=what)
        ticks = ["0, or under\n1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
        axes.set_yticks([FLOOR * 10**i for i in range(7)], ticks)
        axes.spines[["top", "right"]].set_visible(False)
        if alpha is not None:
            axes.axvline(alpha, color="0.85", linewidth=6, zorder=0)
    left.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0.0, 0.78))
    own = f"grey: {report['own']}, the config's own" if alpha is not None else f"{report['own']} is in the table"
    figure.suptitle(f"{subject(report)}; lower is better ({own})", fontsize="medium")
    figure.savefig(file, dpi=150)


def _line(axes: Axes, candidate: Candidate, key: str, name: str) -> None:
    def height(value: float) -> float:
        return max(1.0 - value if key == "correlation" else value, FLOOR)

    colour = STUDENT if candidate["model"] == "student" else TEACHERS[candidate["bits"]]
    rows = [row for row in candidate["rewards"].values() if row["alpha"] is not None and row[key] is not None]
    heights = [height(row[key]) for row in rows]
    axes.plot([row["alpha"] for row in rows], heights, "o-", color=colour, label=name, markersize=4)
    banded = [row for row in rows if row["interval"][key]]
    low, high = ([height(row["interval"][key][i]) for row in banded] for i in (0, 1))
    axes.fill_between([row["alpha"] for row in banded], low, high, color=colour, alpha=0.15, linewidth=0)
