"""The pictures over rewards themselves: by step, by place in the completion, their density, and over probabilities."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from poweropd_lite.report.drawing import (
    Drawn,
    Look,
    Numbers,
    Pen,
    is_broken,
    label,
    new_figure,
    reward_axis,
    whole_ticks,
    with_legend,
)

BAND = "Outer band: from the least to the greatest reward of any token. Inner band: the 5th to the 95th percentile."
OF_SEEDS = " Of several seeds: the outermost of any, and the mean of the percentiles."
LANDSCAPE = (
    "Size of the reward by the student's and the teacher's probability of the sampled token. The log ratio grows "
    "without bound where one of the two is small; a large alpha pays only where one of them is near 1. Both axes are "
    "stretched toward 0 and 1."
)


def reward_pictures(numbers: dict[str, Any], ours: Pen) -> Iterator[Drawn]:
    """Draws those of runs: a panel a setting, all on one scale of rewards; of several seeds their tokens together."""
    if reward := {name: found for name, found in numbers["reward"].items() if found["step"]}:
        seen = [x for found in reward.values() for x in found["reward/min"] + found["reward/max"]]
        several = any("reward/p05_low" in found for found in reward.values())
        yield from _panels("reward", BAND + OF_SEEDS * several, reward, ours, seen)
    if not numbers["density"]:
        return
    densities, places = numbers["density"], numbers["positions"]
    steps = sorted({of["step"] for of in densities.values()})
    when = "before training" if steps == [1] else f"at step {steps[0]}, the first that was kept"
    caption = f"Density of the rewards of a step's tokens, on a log scale. Filled: {when}; "
    caption += "line: at the last step that all seeds kept." + "".join(map(_outside, densities, densities.values()))
    both = {name: (of, numbers["density_at_the_end"][name]) for name, of in densities.items()}
    bins = [(i, of) for pair in both.values() for of in pair for i, share in enumerate(of["density"]) if share]
    seen = [x for i, of in bins for x in of["edges"][i : i + 2]]
    yield from _panels("density", caption, both, ours, seen)
    caption = f"Line: the mean reward of the tokens at a place, {when}. Band: from the least to the greatest."
    seen = [x for found in places.values() for x in found["min"] + found["max"]]
    yield from _panels("positions", caption, places, ours, seen)


def _panels(file: str, caption: str, found: Numbers, ours: Pen, seen: list[float]) -> Iterator[Drawn]:
    """A figure a setting for the page, which a phone can show, and a file of all of them; `seen` are the rewards there."""
    title, draw, across, up = PANELS[file]
    bounds, of = (min(seen, default=0.0), max(seen, default=0.0)), "y" if up == "reward" else "x"
    look = ours.look

    def figure(*names: str) -> Figure:
        columns = 2 if len(names) in (2, 4) else min(3, len(names))
        rows = -(-len(names) // columns)
        size = (look.wide, look.row * rows) if len(names) > 1 else None
        figure, axes = new_figure(look, rows, columns, size, squeeze=False, sharex=True, sharey=True)
        for i, (panel, name) in enumerate(zip(axes.flat, names, strict=False)):
            draw(panel, found[name], ours.ink[name]["color"])
            (panel.axhline if of == "y" else panel.axvline)(0, color="0.3", linewidth=0.6)
            name_panel(panel, look, across, name if len(names) > 1 else "", i)
            panel.tick_params(labelbottom=True)
            if across != "reward":
                whole_ticks(panel, "x")
            reward_axis(panel, of, bounds)
        _finish(axes, len(names), up)
        return with_legend(figure, look, _times(found, names)) if file == "density" else figure

    if is_broken(bounds):
        caption += " Beyond the dotted lines the axis of rewards is logarithmic."
    if len(found) > 1:
        yield from (Drawn(figure(name), f"{title}: {name}", caption, "") for name in found)
    yield Drawn(figure(*found), title, caption, file, on_page=len(found) == 1)


def name_panel(panel: Axes, look: Look, across: str, name: str, place: int) -> None:
    """Labels x, and says above the panel, or in a paper below it, what it is of; nothing for one alone."""
    wrapped = textwrap.fill(label(name), 30)
    if name and look.titles:
        panel.set_title(wrapped, fontsize="medium", loc="left")
    below = f"\n({chr(97 + place)}) {wrapped}" if name and not look.titles else ""
    panel.set_xlabel(across + below)


def _times(found: Numbers, names: Sequence[str]) -> list[Any]:
    """What the legend of densities shows, once for all panels, so in grey."""
    first, last = found[names[0]]
    when = "before training" if first["step"] == 1 else f"step {first['step']}"
    last_steps = sorted({found[name][1]["step"] for name in names})
    at_end = f"step {last['step']}" if len(last_steps) == 1 else f"step {last_steps[0]} to {last_steps[-1]}"
    return [Patch(color="0.7", label=when), Line2D([], [], color="0.2", label=at_end)]


def _finish(axes: Any, used: int, up: str) -> None:
    """Hides the axes [rows, columns] beyond those `used`, and labels the rows."""
    for unused in axes.flat[used:]:
        unused.set_visible(False)
    for row in axes:
        row[0].set_ylabel(up)


def _band(panel: Axes, found: Numbers, color: str) -> None:
    for low, high, alpha in (("min", "max", 0.22), ("p05", "p95", 0.55)):
        ends = found[f"reward/{low}"], found[f"reward/{high}"]
        panel.fill_between(found["step"], *ends, color=color, alpha=alpha, linewidth=0)


def _places(panel: Axes, found: Numbers, color: str) -> None:
    panel.fill_between(found["place"], found["min"], found["max"], color=color, alpha=0.22, linewidth=0)
    panel.plot(found["place"], found["mean"], color=color, linewidth=1.6)


def _density(panel: Axes, found: tuple[Numbers, Numbers], color: str) -> None:
    first, last = found
    when = "before training" if first["step"] == 1 else f"step {first['step']}"
    panel.stairs(first["density"], first["edges"], label=when, fill=True, color=color, alpha=0.5)
    if last["step"] > first["step"]:
        panel.stairs(last["density"], last["edges"], label=f"step {last['step']}", baseline=None, color="0.2")
    if any(first["density"] + last["density"]):
        panel.set_yscale("log")


PANELS: dict[str, tuple[str, Callable[[Axes, Any, str], None], str, str]] = {  # by file: title, content, both axes
    "reward": ("Reward by step", _band, "step", "reward"),
    "density": ("Reward density", _density, "reward", "density"),
    "positions": ("Reward by place", _places, "place in the completion, tokens", "reward"),
}


def _outside(name: str, found: Numbers) -> str:
    outside, strange, (low, *_, high) = found["below"] + found["above"], found["not_finite"], found["edges"]
    where = f"{outside} of {found['tokens']:,} tokens, outside of {low:g} to {high:g}"
    return f" Not shown of {name}: {where}, and {strange} that are not finite." if outside or strange else ""


def landscape_picture(found: Numbers, look: Look) -> Drawn:
    """Size of the reward over both probabilities, on axes of log odds: the log ratio, then power rewards."""
    sizes, ticks, ends = found["size"], (0.001, 0.5, 0.999), (found["q"][0], found["q"][-1])
    columns, width = (2, look.width) if look.titles else (4, look.wide)
    rows = -(-len(sizes) // columns)
    size = (width, 0.5 + 0.88 / columns * width * rows)
    figure, axes = new_figure(look, rows, columns, size, squeeze=False, sharex=True, sharey=True)
    for i, (panel, (name, of)) in enumerate(zip(axes.flat, sizes.items(), strict=False)):
        top = max(1.0, *map(max, of))
        mesh = panel.pcolormesh(found["q"], found["p"], of, cmap="cividis", vmin=0, vmax=top, rasterized=True)
        panel.set(xscale="logit", yscale="logit", box_aspect=1, xlim=ends, ylim=ends)
        for set_ticks in (panel.set_xticks, panel.set_yticks):
            set_ticks(ticks, map(str, ticks), fontsize=look.small)
        panel.minorticks_off()
        across = "student's q" if i >= len(sizes) - columns or not look.titles else ""
        name_panel(panel, look, across, name.replace("_", " "), i)
        bar = figure.colorbar(mesh, ax=panel, ticks=[0, top])
        bar.ax.set_yticklabels(["0", f"{top:.2g}"])
    _finish(axes, len(sizes), "teacher's p")
    others = [name.replace("_", " ") for name in sizes if name not in found["runs"]]
    caption = LANDSCAPE + f" None of these runs: {', '.join(others)}." * bool(others)
    return Drawn(figure, "The reward's landscape", caption, "landscape")
