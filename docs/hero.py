"""Draws the README's picture from the report of a log ratio and a power reward: `python docs/hero.py REPORT PICTURE.png`."""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = {"log_ratio": "#d55e00", "power 10": "#0072b2"}
NAMES = {"log_ratio": "log p - log q, vanilla", "power 10": "p^10 - q^10, PowerOPD"}


def curve(axes: Axes, label: str, numbers: dict, key: str, marks: str = "-", scale: float = 1.0) -> None:
    """Draws the mean over the seeds and the band from the lowest to the highest."""
    low, middle, high = ([scale * x for x in numbers[key + end]] for end in ("_low", "", "_high"))
    axes.fill_between(numbers["step"], low, high, color=INK[label], alpha=0.2, linewidth=0)
    axes.plot(numbers["step"], middle, marks, color=INK[label], label=NAMES[label], markersize=5)


def main(report: Path, picture: Path) -> None:
    """Draws four panels, left to right: what is paid, its gradient, how close the student comes, what it can do."""
    numbers = json.loads((report / "report.json").read_text())
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    paid, slope, near, right = figure.subplots(1, 4)
    for label in INK:
        reward = numbers["reward"][label]
        paid.fill_between(
            reward["step"],
            reward["reward/min_low"],
            reward["reward/max_high"],
            color=INK[label],
            alpha=0.5,
            linewidth=0,
        )
        curve(slope, label, numbers["gradient"][label], "optim/grad_norm")
        curve(near, label, numbers["kl"][label]["held_out"], "kl", "o-")
        curve(right, label, numbers["accuracy"][label], "avg", "o-", 100)
    paid.annotate("each token in [-1, 1]", (50, 1.5), (30, 6.5), color=INK["power 10"], fontsize=10)
    titles = (
        "1. what a token is paid: least to most",
        "2. gradient norm",
        "3. KL to the teacher, nats a token",
        "4. held-out problems right, %",
    )
    for axes, title in zip((paid, slope, near, right), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    slope.set_yscale("log")
    right.set_ylim(0, 100)
    near.set_ylim(bottom=0)
    handles, names = slope.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    figure.savefig(picture, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
