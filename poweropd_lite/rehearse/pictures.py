"""The pictures: an advice's four panels, an audit's flipped reward mass and correlation by alpha with their limits."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poweropd_lite.rehearse.advise_report import Advice
from poweropd_lite.rehearse.audit_report import AuditReport, Candidate
from poweropd_lite.rehearse.report import subject

OWN, PLAIN, DARK = "#d55e00", "#56b4e9", "#0072b2"  # readable by the colour-blind
LINES = ("#0072b2", "#009e73", "#cc79a7", "#000000")
TEACHERS = {4: "#d55e00", 8: "#cc79a7", 16: "#0072b2", 32: "#000000"}  # by bits, readable by the colour-blind
STUDENT = "#009e73"
FLOOR = 1e-6  # what is smaller, such as 0, is drawn here: both scales are logarithmic


def draw_advice(report: Advice, file: Path) -> None:
    """Writes the picture as a PNG of four panels; the config's own reward is orange."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (paid, carried), (placed, pointed) = figure.subplots(2, 2)
    _paid(paid, report)
    _bars(carried, report, {label: row["top_gradient"] for label, row in report["rewards"].items()}, 100.0)
    limit = 100 * report["settings"]["heavy_share"]
    carried.axvline(limit, color="0.4", linestyle="--", linewidth=1)
    carried.set_xlabel(f"share of the gradient that the top 1% of tokens carry, % (dashed: {limit:g})")
    _placed(placed, report)
    _pointed(pointed, report)
    titles = ("who is paid", "who carries the gradient", "where the reward is", "where the gradient points")
    for axes, title in zip((paid, carried, placed, pointed), titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    own = f"orange: {report['own']}, the config's own; " if report["own"] != "full_kl" else ""
    figure.suptitle(f"{subject(report)} ({own}light: power rewards)", fontsize="medium")
    figure.savefig(file, dpi=130)


def _paid(axes: Axes, report: Advice) -> None:
    powers = [row for row in report["rewards"].values() if row["alpha"] is not None]
    for key, name, colour in (
        ("live_share", f"tokens paid more than {report['settings']['live_reward']:g} in size", LINES[0]),
        ("positive_mass", "share of sum |r| above zero", LINES[1]),
        ("effective_share", "tokens that carry the gradient, effectively", LINES[2]),
    ):
        points = [(row["alpha"], 100 * row[key]) for row in powers if row[key] is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, label=name, markersize=4)
    if (alpha := report["rewards"][report["own"]]["alpha"]) is not None:
        axes.axvline(alpha, color=OWN, linewidth=6, alpha=0.25, zorder=0)
    axes.set(xscale="log", ylim=(0, 100), xlabel="alpha of the power reward", ylabel="%")
    _legend_below(axes, 1)


def _legend_below(axes: Axes, columns: int) -> None:
    axes.legend(
        frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=columns, borderaxespad=0
    )


def _placed(axes: Axes, report: Advice) -> None:
    rows = {label: row for label, row in report["rewards"].items() if row["by_decile"] and row["mean_abs"]}
    others = [n for n, row in rows.items() if row["alpha"] in (1, 10, 100) or row["reward"] == "log_ratio"]
    colours = dict(zip([n for n in others if n != report["own"]], LINES, strict=False))
    for label, colour in (colours | {report["own"]: OWN} if report["own"] in rows else colours).items():
        parts = [(10 * i + 5, part) for i, part in enumerate(rows[label]["by_decile"]) if part]
        heights = [part["mean_abs"] / rows[label]["mean_abs"] for _, part in parts]
        axes.plot([x for x, _ in parts], heights, "o-", color=colour, label=label, markersize=4)
    axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1)
    low, high = axes.dataLim.intervaly
    reach = 1.1 * max(1 - low, high - 1) or 1.0
    axes.set(xlim=(0, 100), ylim=(1 - reach, 1 + reach))  # as far up as down
    axes.set(xlabel="place in the completion, %", ylabel="mean |r| there / mean |r|")
    _legend_below(axes, 4)


def _pointed(axes: Axes, report: Advice) -> None:
    gradients = {label: row["gradient"] for label, row in report["rewards"].items() if row["reward"] != "full_kl"}
    labels = _bars(axes, report, {label: g["cosine_full_kl"] for label, g in gradients.items()}, 1.0)
    between = [(gradients[label]["cosine_between_batches"], i) for i, label in enumerate(labels)]
    if points := [point for point in between if point[0] is not None]:
        axes.plot(*zip(*points, strict=True), "k|", markersize=9, markeredgewidth=2, label="between two batches")
        axes.legend(frameon=False, fontsize="small")
    axes.axvline(0.0, color="0.4", linewidth=1)
    axes.set_xlabel("cosine of the gradient with full_kl's, on the same tokens")


def _bars(axes: Axes, report: Advice, values: dict[str, float | None], scale: float) -> list[str]:
    """One bar a reward that has a value, from the top down in the table's order; returns their labels."""
    known, rows = {label: value for label, value in values.items() if value is not None}, report["rewards"]
    colours = [OWN if n == report["own"] else PLAIN if rows[n]["alpha"] is not None else DARK for n in known]
    axes.barh(range(len(known)), [scale * value for value in known.values()], color=colours, height=0.7)
    axes.set_yticks(range(len(known)), list(known), fontsize="small")
    axes.invert_yaxis()
    return list(known)


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
