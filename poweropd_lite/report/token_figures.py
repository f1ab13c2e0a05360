"""The figures over rewards themselves: by step, by place in the completion, their density, and over probabilities."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poweropd_lite.report.drawing import HEIGHT, WIDTH, label, new_figure, reward_axis, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = dict[str, Any]


def reward_figure(runs: dict[str, Numbers], indices: dict[str, int], bounds: tuple[float, float]) -> "Figure":
    """Least and greatest reward by step, and in the darker band the middle 90%: a panel a run, all on one scale `bounds`."""

    def draw(panel: "Axes", found: Numbers, color: str) -> None:
        steps = found["step"]
        panel.fill_between(steps, found["reward/min"], found["reward/max"], color=color, alpha=0.22, linewidth=0)
        panel.fill_between(steps, found["reward/p05"], found["reward/p95"], color=color, alpha=0.55, linewidth=0)

    return _panels(runs, indices, bounds, draw, "step")


def positions_figure(runs: dict[str, Numbers], indices: dict[str, int], bounds: tuple[float, float]) -> "Figure":
    """Mean reward by place in the completion, between the least and the greatest: a panel a run, all on one scale `bounds`."""

    def draw(panel: "Axes", found: Numbers, color: str) -> None:
        panel.fill_between(found["place"], found["min"], found["max"], color=color, alpha=0.22, linewidth=0)
        panel.plot(found["place"], found["mean"], color=color, linewidth=1.6)

    return _panels(runs, indices, bounds, draw, "place in the completion, tokens")


def _panels(
    runs: dict[str, Numbers],
    indices: dict[str, int],
    bounds: tuple[float, float],
    draw: "Callable[[Axes, Numbers, str], None]",
    along: str,
    up: str = "reward",
    of: str = "y",
) -> "Figure":
    """A panel a run; `bounds` are those of the rewards, which are on the axis `of`."""
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    height = HEIGHT if len(runs) == 1 else 0.8 * HEIGHT * rows
    figure, axes = new_figure(rows, columns, height=height, squeeze=False, sharex=True, sharey=True)
    figure.set_figwidth(max(WIDTH, 3.2 * columns))
    for panel, (name, found) in zip(axes.flat, runs.items(), strict=False):
        draw(panel, found, style(indices[name])["color"])
        (panel.axhline if of == "y" else panel.axvline)(0, color="0.3", linewidth=0.6)
        if len(runs) > 1:
            panel.set_title(label(name), fontsize="medium", loc="left")
        panel.set_xlabel(along)
        panel.tick_params(labelbottom=True)
        reward_axis(panel, of, *bounds)
    for unused in axes.flat[len(runs) :]:
        unused.set_visible(False)
    for row in axes:
        row[0].set_ylabel(up)
    return figure


def density_figure(runs: dict[str, Numbers], indices: dict[str, int], bounds: tuple[float, float]) -> "Figure":
    """Density of the rewards on a log scale, filled at the first step kept and a line at the last: a panel a run, on one scale."""

    def draw(panel: "Axes", found: Numbers, color: str) -> None:
        first, last = found["first"], found["last"]
        when = "before training" if first["step"] == 1 else f"step {first['step']}"
        panel.stairs(first["density"], first["edges"], label=when, fill=True, color=color, alpha=0.5)
        if last["step"] > first["step"]:
            panel.stairs(last["density"], last["edges"], label=f"step {last['step']}", baseline=None, color="0.2")
        if any(first["density"]) or any(last["density"]):
            panel.set_yscale("log")
        panel.legend(frameon=False, fontsize="x-small", loc="best")

    return _panels(runs, indices, bounds, draw, "reward", "density", of="x")


def range_of(densities: list[Numbers]) -> tuple[float, float]:
    """Returns the least and the greatest reward at which any of the densities has tokens."""
    there = [(of["edges"][i], of["edges"][i + 1]) for of in densities for i, d in enumerate(of["density"]) if d]
    return min((low for low, _ in there), default=0.0), max((high for _, high in there), default=0.0)


def landscape_figure(found: Numbers) -> "Figure":
    """Size of the reward over the student's and the teacher's probability, on axes of log odds: the log ratio, then power rewards."""
    names, ticks, ends = list(found["size"]), (0.001, 0.5, 0.999), (found["q"][0], found["q"][-1])
    rows = -(-len(names) // 2)
    figure, axes = new_figure(rows, 2, height=0.5 + 0.44 * WIDTH * rows, squeeze=False, sharex=True, sharey=True)
    for panel, name in zip(axes.flat, names, strict=False):
        size = found["size"][name]
        top = max(map(max, size)) if name == "log_ratio" else 1.0
        mesh = panel.pcolormesh(found["q"], found["p"], size, cmap="cividis", vmin=0, vmax=top, rasterized=True)
        panel.set(xscale="logit", yscale="logit", aspect="equal", xlim=ends, ylim=ends)
        panel.set_xticks(ticks, map(str, ticks), fontsize="small")
        panel.set_yticks(ticks, map(str, ticks), fontsize="small")
        panel.minorticks_off()
        panel.set_title(name.replace("_", " "), fontsize="medium")
        bar = figure.colorbar(mesh, ax=panel, ticks=[0, top])
        bar.ax.set_yticklabels(["0", f"{top:.2g}"])
    for unused in axes.flat[len(names) :]:
        unused.set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel("student's q")
    for row in axes:
        row[0].set_ylabel("teacher's p")
    return figure
