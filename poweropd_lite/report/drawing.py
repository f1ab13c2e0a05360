"""How figures look: a colour a setting, told apart by the colour-blind, in sizes for a phone or a paper; no screen."""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
DASHES = ("-", "--", ":", "-.")  # tells apart beyond seven settings
FEW = 12  # points that a line is too short without marks for
BOUND = 1.0  # of bounded rewards: beyond it an axis of rewards is logarithmic
Numbers = dict[str, Any]  # what is drawn, by setting


@dataclass(frozen=True)
class Look:
    """Sizes in inches and points. On a screen letters stay readable at 360 pixels; a paper has columns and captions."""

    width: float  # of one column
    height: float
    wide: float  # of two columns
    row: float  # the height of a row of panels
    small: float  # points
    titles: bool  # whether panels have them; in a paper their names stand below, as (a), (b)
    rc: dict[Any, Any]  # matplotlib's settings


_COMMON = {"svg.hashsalt": "report", "svg.fonttype": "path", "pdf.fonttype": 42}
_PAPER: dict[str, float] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
}
_PAPER |= {"ytick.labelsize": 8, "lines.linewidth": 1.1, "axes.linewidth": 0.6, "savefig.dpi": 300}
LOOKS = {
    "screen": Look(4.6, 3.0, 9.2, 2.4, 8.3, True, {**_COMMON, "legend.fontsize": 8.3, "savefig.dpi": 160}),
    "paper": Look(3.35, 2.2, 6.9, 1.7, 8.0, False, {**_COMMON, **_PAPER}),
}


@dataclass(frozen=True)
class Drawn:
    """A figure; `file` is its name without ending, "" for one that is a part of another's."""

    figure: Figure
    title: str
    caption: str
    file: str
    on_page: bool = True
    main: bool = False  # whether it stands with the answer, above the table


@dataclass(frozen=True)
class Pen:
    """What draws: the look, and colour and dash by setting."""

    look: Look
    ink: Mapping[str, Mapping[str, Any]]


def pen(labels: Sequence[str], style: str) -> Pen:
    """Returns the pen of a style ("screen", "paper") for settings."""
    ink = [{"color": INK[i % len(INK)], "linestyle": DASHES[i // len(INK) % len(DASHES)]} for i in range(len(labels))]
    return Pen(LOOKS[style], dict(zip(labels, ink, strict=True)))


def label(name: str) -> str:
    """Returns a name as matplotlib takes it: no formula between dollars, in the legend even with "_" in front."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def new_figure(
    look: Look, rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure, that needs no screen, and its axes (an array if there are several)."""
    figure = Figure(figsize=size or (look.width, look.height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot(
    found: Numbers, key: str, pen: Pen, across: str, up: str, scale: float = 1, few: float = FEW, **how: Any
) -> tuple[Figure, Axes]:
    """Returns a figure and its axes: `key` by "step", a line a setting in its band, marked where of `few` points or less."""
    figure, axes = new_figure(pen.look)
    for name, numbers in found.items():
        marks = {"marker": "o", "markersize": 3.5} if len(numbers["step"]) <= few else {}
        axes.plot(numbers["step"], scaled(numbers[key], scale), label=label(name), **marks | how, **pen.ink[name])
        band(axes, numbers, key, pen.ink[name]["color"], scale)
    axes.set(xlabel=across, ylabel=up)
    whole_ticks(axes, "x")
    return figure, axes


def band(axes: Axes, numbers: Numbers, key: str, color: str, scale: float = 1) -> None:
    """Fills what lies between the lowest and the highest seed, where there are several."""
    if f"{key}_low" in numbers:
        low, high = (scaled(numbers[f"{key}_{end}"], scale) for end in ("low", "high"))
        axes.fill_between(numbers["step"], low, high, color=color, alpha=0.18, linewidth=0)


def scaled(values: Sequence[float], scale: float) -> list[float]:
    return [scale * value for value in values]


def whole_ticks(axes: Axes, which: str) -> None:
    """Puts no tick between whole numbers on the "x" or "y" axis, which counts something."""
    getattr(axes, f"{which}axis").set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def log_scale(axes: Axes, values: Sequence[float]) -> None:
    """Makes y logarithmic, with plain numbers at its ticks, however few decades `values` (above zero) span."""
    low, high = min(values), max(values)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def with_legend(figure: Figure, look: Look, handles: Sequence[Any] | None = None) -> Figure:
    """Returns the figure, which has grown by a legend below its axes where there are two curves or more.

    It has as many columns as fit, and long names in several lines: the axes keep their size.
    """
    found: Sequence[Any] = handles or figure.axes[0].get_legend_handles_labels()[0]
    shown = {str(one.get_label()): one for one in found}
    if len(shown) < 2:
        return figure
    dpi, legend = figure.dpi, None
    for letters in (60, 40, 30, 24, 18):  # of a line
        names = [
            textwrap.fill(name, letters, subsequent_indent="  ") if len(name) > letters else name for name in shown
        ]
        for columns in range(min(4, len(shown)), 0, -1):
            if legend is not None:
                legend.remove()
            legend = figure.legend(shown.values(), names, loc="outside lower left", ncols=columns, frameon=False)
            box = legend.get_window_extent()
            if box.width <= figure.get_figwidth() * dpi:
                figure.set_figheight(figure.get_figheight() + box.height / dpi)
                return figure
    assert legend is not None
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / dpi)
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
    """Returns the figure as "png", "svg" (letters as shapes) or "pdf" (fonts inside); the same bytes for the same figure."""
    buffer = io.BytesIO()
    nothing = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with warnings.catch_warnings():
        # A run may be named with letters that the font lacks; boxes stand for them, and the page has the name in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if figure.get_layout_engine() is not None:  # laid out once, for every kind
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=kind, metadata=nothing)
    return buffer.getvalue()
