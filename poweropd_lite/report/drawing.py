"""How figures look: a colour a run, told apart by the colour-blind, in sizes that a phone can show; no screen."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
DASHES = ("-", "--", ":", "-.")  # tells apart beyond seven runs
WIDTH, HEIGHT = 4.6, 3.0  # inches of a panel: its letters stay readable on a screen of 360 pixels
FEW = 12  # points that a line is too short without marks for
BOUND = 1.0  # of bounded rewards: beyond it an axis of rewards is logarithmic
Styles = dict[str, dict[str, Any]]  # colour and dash, by run
Numbers = dict[str, Any]  # what is drawn, by run
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y, by run


@dataclass(frozen=True)
class Drawn:
    """A figure; `file` is its name without ending, "" for one that is a part of another's."""

    figure: Figure
    title: str
    caption: str
    file: str
    on_page: bool = True


def style(index: int) -> dict[str, Any]:
    """Returns colour and dash of the run at `index`."""
    return {"color": INK[index % len(INK)], "linestyle": DASHES[index // len(INK) % len(DASHES)]}


def label(name: str) -> str:
    """Returns a run's name as matplotlib takes it: no formula between dollars, in the legend even with "_" in front."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def new_figure(
    rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = HEIGHT, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure, that needs no screen, and its axes (an array if there are several)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot(lines: Lines, styles: Styles, across: str, up: str, few: float = FEW, **how: Any) -> tuple[Figure, Axes]:
    """Returns a figure and its axes with a line a run, marked where it has at most `few` points."""
    figure, axes = new_figure()
    for name, (x, y) in lines.items():
        marks = {"marker": "o", "markersize": 3.5} if len(x) <= few else {}
        axes.plot(x, y, label=label(name), **marks | how, **styles[name])
    axes.set(xlabel=across, ylabel=up)
    return figure, axes


def with_legend(figure: Figure, columns: int = 2) -> Figure:
    """Returns the figure with its legend above the axes, where it hides no line."""
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
    return figure


def is_broken(bounds: tuple[float, float]) -> bool:
    """Whether an axis of rewards within `bounds` is logarithmic beyond +-1, which bounded rewards never leave."""
    return bounds[0] < -BOUND or bounds[1] > BOUND


def reward_axis(axes: Axes, which: str, bounds: tuple[float, float]) -> None:
    """Scales the "x" or "y" axis of rewards within `bounds`; where it is broken, dotted lines mark it."""
    low, high = bounds
    if not is_broken(bounds):
        axes.set(**{f"{which}lim": (min(1.05 * low, -0.05), max(1.05 * high, 0.05))})
        return
    getattr(axes, f"set_{which}scale")("symlog", linthresh=BOUND, linscale=1.2)
    axes.set(**{f"{which}lim": (1.3 * min(low, -BOUND), 1.3 * max(high, BOUND))})
    getattr(axes, f"{which}axis").set_major_formatter(lambda value, _: f"{value:g}")
    for edge in (-BOUND, BOUND):
        (axes.axvline if which == "x" else axes.axhline)(edge, color="0.6", linewidth=0.7, linestyle=":")


def rendered(figure: Figure, kind: str) -> bytes:
    """Returns the figure as "png" or "svg", which has letters as shapes, and the same bytes for the same figure."""
    buffer, options = io.BytesIO(), {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}), warnings.catch_warnings():
        # A run may be named with letters that the font lacks; boxes stand for them, and the page has the name in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
