"""The pictures against alpha: what power runs came to, and the size of their gradients; other rewards as lines."""

from collections.abc import Iterator
from typing import Any

from poweropd_lite.report.drawing import INK, Drawn, Numbers, Pen, label, log_scale, new_figure, scaled, with_legend
from poweropd_lite.report.read import Reference
from poweropd_lite.report.series import bases

BASE = "base (before training)"
SPREAD = "Point: the mean over a setting's seeds; bar: from the lowest to the highest. Lines between them were not run."


def alpha_pictures(
    numbers: dict[str, Any], ours: Pen, teacher: Reference | None, base: Reference | None
) -> Iterator[Drawn]:
    """Draws the end and the median gradient norm against alpha, where power runs have two alphas or more."""
    end, norms = numbers["end"], numbers["by_alpha"]["gradient"]
    if end and numbers["by_alpha"]["end"]["curves"]:
        share, own_scores = end["unit"] == "%", not end["unit"]
        figure, axes = _against(numbers["by_alpha"]["end"], ours, end["axis"], 100 if share else 1)
        if teacher is not None and share:
            axes.axhline(100 * teacher.accuracy, color="0.3", linewidth=1, linestyle="--", label="teacher")
        own = [of for of in numbers["accuracy"].values() if any(of["step"])]  # else the end is of the evaluate command
        before = before_training(numbers["accuracy"] if own else {}, base, end["unit"])
        if share and len(before) == 1:
            axes.axhline(100 * min(before), color="0.6", linewidth=1, linestyle=":", label=BASE)
        if share:  # as far as there is something to see: differences are read here
            low, high = axes.get_ylim()
            axes.set_ylim(max(0, low - 2), min(102, high + 2))
        elif not own_scores:
            axes.set_ylim(bottom=0)
        title = "Mean score" if own_scores else "Accuracy" if share else "KL to the teacher"
        caption = f"{end['name']}, at the end. {SPREAD}"
        yield Drawn(
            with_legend(figure, ours.look),
            f"{title} against alpha",
            caption,
            "accuracy_alpha" if share or own_scores else "kl_alpha",
            main=True,
        )
    if norms["curves"]:
        figure, axes = _against(norms, ours, "median gradient norm", 1)
        seen = [v for of in norms["curves"].values() for v in of["low"] + of["high"]]
        seen += [v for of in norms["levels"].values() for v in (of["low"], of["high"])]
        if above := [value for value in seen if value > 0]:
            log_scale(axes, above)
        caption = f"Median over a run's steps, before the clip, on log scales. {SPREAD}"
        yield Drawn(with_legend(figure, ours.look), "Gradient norm against alpha", caption, "gradient_alpha", main=True)


def before_training(found: Numbers, base: Reference | None, unit: str) -> set[float]:
    """Returns what settings, by label, had before training: one number where they began alike, or `base` where it is given."""
    if base is None:
        return bases(found)
    return {base.accuracy} if base.own == (not unit) else set()


def _against(found: dict[str, Numbers], ours: Pen, up: str, scale: float) -> tuple[Any, Any]:
    figure, axes = new_figure(ours.look)
    alphas = sorted({alpha for of in found["curves"].values() for alpha in of["alpha"]})
    for i, (name, of) in enumerate(found["curves"].items()):
        mean, low, high = (scaled(of[key], scale) for key in ("mean", "low", "high"))
        bars = [[m - v for m, v in zip(mean, low, strict=True)], [v - m for m, v in zip(mean, high, strict=True)]]
        color = INK[i % len(INK)]
        axes.plot(of["alpha"], mean, linewidth=0.6, alpha=0.5, color=color)  # for the eye: nothing was run between
        axes.plot(of["alpha"], mean, "o", markersize=4, color=color, label=label(name))
        axes.errorbar(of["alpha"], mean, bars, fmt="none", capsize=2.5, ecolor=color)
    for name, level in found["levels"].items():
        axes.axhline(scale * level["mean"], linewidth=1.2, label=label(name), **ours.ink[name])
        if level["low"] < level["high"]:
            axes.axhspan(scale * level["low"], scale * level["high"], color=ours.ink[name]["color"], alpha=0.12, lw=0)
    axes.set_xscale("log")
    axes.set_xlim(alphas[0] / 1.3, alphas[-1] * 1.3)
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="alpha", ylabel=up)
    return figure, axes
