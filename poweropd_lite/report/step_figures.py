"""The figures over a run's steps, drawn from the numbers of series.py alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from poweropd_lite.report.drawing import INK, label, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = dict[str, Any]  # by the name of the run
FEW = 12  # points that a line is too short without marks for


def accuracy_figure(runs: Numbers, indices: dict[str, int], samples: str, teacher: float | None) -> "Figure":
    """Avg@k by step, with the base (before training) and the teacher as lines."""
    figure, axes = new_figure()
    for name, found in runs.items():
        axes.plot(
            found["step"], _percent(found["avg"]), marker="o", markersize=3.5, label=label(name), **style(indices[name])
        )
    bases = {found["avg"][0] for found in runs.values() if found["step"] and found["step"][0] == 0}
    if len(bases) == 1:
        axes.axhline(100 * bases.pop(), color="0.6", linewidth=1, linestyle=":", label="base (before training)")
    if teacher is not None:
        axes.axhline(100 * teacher, color="0.3", linewidth=1, linestyle="--", label="teacher")
    axes.set_ylim(0, 102)
    axes.set_xlabel("step")
    axes.set_ylabel(f"Avg@{samples}, %")
    legend(axes, len(runs) + 2)
    return figure


def line_figure(
    runs: Numbers, indices: dict[str, int], key: str, title: str, log: bool = False, floor: float | None = None
) -> "Figure":
    """One number by step, a line a run."""
    figure, axes = new_figure()
    for name, found in runs.items():
        marker = {"marker": "o", "markersize": 3.5} if len(found["step"]) <= FEW else {}
        axes.plot(found["step"], found[key], linewidth=1.2, label=label(name), **marker, **style(indices[name]))
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if log and any(value > 0 for found in runs.values() for value in found[key]):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    legend(axes, len(runs))
    return figure


def gradient_figure(runs: Numbers, indices: dict[str, int], clip: float | None) -> "Figure":
    """Gradient norm before the clip, by step; the line is where it is clipped, if that is one number."""
    figure = line_figure(runs, indices, "optim/grad_norm", "gradient norm", log=True)
    if clip is None:
        return figure
    figure.axes[0].axhline(clip, color="0.4", linewidth=1, linestyle="--")
    figure.axes[0].annotate(
        f"clipped at {clip:g}", (1, clip), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize="small", color="0.3"
    )  # fmt: skip
    return figure


def steps_figure(found: dict[str, Any], indices: dict[str, int], samples: str) -> "Figure":
    """Steps that each run needs for the accuracies that the baseline reaches (the paper's Fig. 1)."""
    figure, axes = new_figure()
    for name, steps in found["steps"].items():
        points = [(s, 100 * level) for s, level in zip(steps, found["levels"], strict=True) if s is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label(name), **style(indices[name]))
    axes.set_xlabel("steps needed")
    axes.set_ylabel(f"Avg@{samples} reached, %")
    axes.set_xlim(left=0)
    legend(axes, len(found["steps"]))
    return figure


def time_figure(runs: dict[str, dict[str, float]]) -> "Figure":
    """Seconds by phase, a bar a run."""
    names = list(runs)
    phases = [phase for phase in runs[names[0]] if any(seconds[phase] for seconds in runs.values())]
    unit, word = (3600, "hours") if max(sum(s.values()) for s in runs.values()) > 2 * 3600 else (1, "seconds")
    figure, axes = new_figure(height=1.5 + 0.32 * len(names))
    left = [0.0] * len(names)
    for k, phase in enumerate(phases):
        widths = [runs[name][phase] / unit for name in names]
        axes.barh(range(len(names)), widths, left=left, color=INK[k % len(INK)], label=phase, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), map(label, names), fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(word)
    figure.legend(frameon=False, fontsize="small", loc="outside upper left", ncols=4)
    return figure


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
