"""The figures over rewards themselves: by step, by place in the completion, their density, and over probabilities."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poweropd_lite.report.drawing import HEIGHT, WIDTH, legend, new_figure, reward_axis, style

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
) -> "Figure":
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    height = HEIGHT if len(runs) == 1 else 0.8 * HEIGHT * rows
    figure, axes = new_figure(rows, columns, height=height, squeeze=False, sharex=True, sharey=True)
    figure.set_figwidth(max(WIDTH, 3.2 * columns))
    for panel, (name, found) in zip(axes.flat, runs.items(), strict=False):
        draw(panel, found, style(indices[name])["color"])
        panel.axhline(0, color="0.3", linewidth=0.6)
        panel.set_title(name, fontsize="medium", loc="left")
        panel.set_xlabel(along)
        panel.tick_params(labelbottom=True)
        reward_axis(panel, "y", *bounds)
    for unused in axes.flat[len(runs) :]:
        unused.set_visible(False)
    for row in axes:
        row[0].set_ylabel("reward")
    return figure


def density_figure(first: dict[str, Numbers], indices: dict[str, int], last: dict[str, Numbers]) -> "Figure":
    """Density of the rewards on a log scale at the first step kept, by run; also at the last one, if there is only one run."""
    figure, axes = new_figure()
    for name, found in first.items():
        label = name if len(first) > 1 else "before training" if found["step"] == 1 else f"step {found['step']}"
        axes.stairs(found["density"], found["edges"], label=label, baseline=None, linewidth=1.4, **style(indices[name]))
    if len(first) == 1:
        ((_, found),) = last.items()
        axes.stairs(found["density"], found["edges"], label=f"step {found['step']}", baseline=None, **style(1))
    reward_axis(axes, "x", *edges_with_counts([*first.values(), *last.values()]))
    axes.set_yscale("log")
    axes.set_xlabel("reward")
    axes.set_ylabel("density")
    legend(axes, len(first) + 1)
    return figure


def edges_with_counts(found: list[Numbers]) -> tuple[float, float]:
    """Returns the least and the greatest reward that any of the densities has tokens at."""
    there = [
        (numbers["edges"][i], numbers["edges"][i + 1])
        for numbers in found
        for i, d in enumerate(numbers["density"])
        if d
    ]
    return min((low for low, _ in there), default=0.0), max((high for _, high in there), default=0.0)


def landscape_figure(found: Numbers) -> "Figure":
    """Size of the reward over the student's and the teacher's probability: the log ratio, then power rewards."""
    names = list(found["size"])
    rows = -(-len(names) // 2)
    figure, axes = new_figure(rows, 2, height=0.5 + 0.43 * WIDTH * rows, squeeze=False, sharex=True, sharey=True)
    for panel, name in zip(axes.flat, names, strict=False):
        size = found["size"][name]
        top = max(map(max, size)) if name == "log_ratio" else 1.0
        mesh = panel.pcolormesh(found["q"], found["p"], size, cmap="cividis", vmin=0, vmax=top, rasterized=True)
        panel.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xlim=(0, 1), ylim=(0, 1), aspect="equal")
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
