"""How figures look: one colour a run, told apart by the colour-blind; sizes that a phone can show; no screen, no state."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
DASHES = ("-", "--", ":", "-.")  # tells apart beyond seven runs
WIDTH, HEIGHT = 4.6, 3.0  # inches of a panel: its letters stay readable on a screen of 360 pixels
BOUND = 1.0  # of bounded rewards: beyond it an axis of rewards is logarithmic


def style(index: int) -> dict[str, Any]:
    """Returns colour and dash of the run at `index`."""
    return {"color": INK[index % len(INK)], "linestyle": DASHES[index // len(INK) % len(DASHES)]}


def label(name: str) -> str:
    """Returns a run's name as matplotlib takes it: no formula between dollars, and in the legend even with "_" in front."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def new_figure(rows: int = 1, columns: int = 1, height: float = HEIGHT, **options: Any) -> tuple["Figure", Any]:
    """Returns a figure, that needs no screen, and its axes (an array if there are several)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: "Axes", entries: int) -> None:
    """Puts the legend above the axes, where it hides no line."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=2 if entries > 1 else 1,
        frameon=False,
        fontsize="small",
    )


def reward_axis(axes: "Axes", which: str, low: float, high: float) -> None:
    """Scales the "x" or "y" axis of rewards for those from `low` to `high`: linear within +-1, which bounded rewards never leave.

    Where some do, the axis is broken there, at a dotted line, and logarithmic beyond.
    """
    line, scale, limit = (
        (axes.axvline, axes.set_xscale, axes.set_xlim)
        if which == "x"
        else (axes.axhline, axes.set_yscale, axes.set_ylim)
    )
    broken = low < -BOUND or high > BOUND
    if not broken:
        limit(min(1.05 * low, -0.05), max(1.05 * high, 0.05))
        return
    scale("symlog", linthresh=BOUND, linscale=1.2)
    limit(1.3 * min(low, -BOUND), 1.3 * max(high, BOUND))
    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(lambda value, _: f"{value:g}")
    for edge in (-BOUND, BOUND):
        line(edge, color="0.6", linewidth=0.7, linestyle=":")


@contextlib.contextmanager
def _any_letter() -> Iterator[None]:
    """A run may be named with letters that the font lacks; boxes stand for them, and the page has the name in full."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def write_figure(figure: "Figure", folder: Path, name: str) -> None:
    """Writes NAME.svg and NAME.png."""
    (folder / f"{name}.svg").write_bytes(svg_of(figure, name))
    with _any_letter():
        figure.savefig(folder / f"{name}.png", dpi=160)


def svg_of(figure: "Figure", name: str) -> bytes:
    """Returns the figure as SVG, letters as shapes: it looks alike everywhere, and the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}), _any_letter():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
