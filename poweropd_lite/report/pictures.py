"""Which pictures a report has, with titles and captions: those that runs have numbers for. Here those over steps."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from poweropd_lite.report.drawing import INK, Drawn, Numbers, Styles, label, new_figure, plot, style, with_legend
from poweropd_lite.report.read import Reference, Run
from poweropd_lite.report.reward_pictures import landscape_picture, reward_pictures

CUT = "The student's own probability of the ids that top-k and top-p leave it; 1: nothing was cut off."
APART = "Mean difference of the two programs' log-probs of the same tokens."
STOPS = "Share of a step's rollouts that end with a stop token."
RATE = "Sampled tokens by seconds of the whole step."
HEALTH: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # by metric: file, title, caption, how it is drawn
    "rollout/length": ("rollout_length", "Tokens a completion", "Mean length of a step's rollouts.", {"floor": 0}),
    "rollout/stop_share": ("stop_share", "Completions that stop", STOPS, {"floor": 0}),
    "sampling/kept_mass": ("kept_mass", "Mass kept by truncation", CUT, {}),
    "parity/gap": ("gap", "Engine and trainer apart, nats", APART, {"log": True}),
    "time/tokens_per_second": ("tokens_per_second", "Tokens a second", RATE, {"floor": 0}),
}


def pictures(runs: Sequence[Run], numbers: dict[str, Any], teacher: Reference | None) -> Iterator[Drawn]:
    """Draws the figures of the report's `numbers`, in the order of the page."""
    styles = {run.name: style(i) for i, run in enumerate(runs)}
    samples = "/".join(dict.fromkeys(str(run.config.eval_samples) for run in runs))
    if evaluated := _there(numbers["accuracy"]):
        yield _accuracy(evaluated, styles, samples, teacher)
        figure = _by_step(evaluated, styles, "length", "mean length, tokens", floor=0)
        yield Drawn(figure, "Length by step", "Mean length of the answers sampled in evaluation.", "length")
    if len(runs) > 1 and numbers["steps_to"]["levels"]:
        yield _steps_to(numbers["steps_to"], styles, samples)
    if gradient := _there(numbers["gradient"]):
        yield _gradient(gradient, styles, {run.config.max_grad_norm for run in runs})
    yield from reward_pictures(numbers, styles)
    for key, (file, title, caption, how) in HEALTH.items():
        if key == "sampling/kept_mass" and not any(run.config.top_k or run.config.top_p < 1 for run in runs):
            continue  # nothing is cut off but rows that no token has
        if found := _there(numbers["by_step"][key]):
            yield Drawn(_by_step(found, styles, key, title.lower(), **how), title, caption, file)
    if taken := {run.name: numbers["seconds"][run.name] for run in runs if run.steps}:
        yield _time(taken)
    yield landscape_picture(numbers["landscape"])


def _there(found: Numbers) -> Numbers:
    return {name: numbers for name, numbers in found.items() if numbers["step"]}


def _accuracy(runs: Numbers, styles: Styles, samples: str, teacher: Reference | None) -> Drawn:
    """Avg@k by step, with the base (before training) and the teacher as lines."""
    lines = {name: (found["step"], [100 * avg for avg in found["avg"]]) for name, found in runs.items()}
    figure, axes = plot(lines, styles, "step", f"Avg@{samples}, %", few=math.inf)
    bases = {found["avg"][0] for found in runs.values() if found["step"][0] == 0}
    if len(bases) == 1:
        axes.axhline(100 * min(bases), color="0.6", linewidth=1, linestyle=":", label="base (before training)")
    if teacher is not None:
        axes.axhline(100 * teacher.accuracy, color="0.3", linewidth=1, linestyle="--", label="teacher")
    axes.set_ylim(0, 102)
    no_line = " No line for the base: the runs differ in what they had before training."
    caption = "Avg@k on the held-out problems." + (no_line if len(bases) > 1 else "")
    return Drawn(with_legend(figure), "Accuracy by step", caption, "accuracy")


def _by_step(runs: Numbers, styles: Styles, key: str, up: str, log: bool = False, floor: float | None = None) -> Figure:
    lines = {name: (found["step"], found[key]) for name, found in runs.items()}
    figure, axes = plot(lines, styles, "step", up, linewidth=1.2)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if log and any(value > 0 for found in runs.values() for value in found[key]):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    return with_legend(figure)


def _gradient(runs: Numbers, styles: Styles, clips: set[float]) -> Drawn:
    """Gradient norm before the clip, by step; the line is where it is clipped, if that is one number."""
    figure = _by_step(runs, styles, "optim/grad_norm", "gradient norm", log=True)
    if len(clips) == 1:
        clip, axes, at = min(clips), figure.axes[0], ("axes fraction", "data")
        axes.axhline(clip, color="0.4", linewidth=1, linestyle="--")
        text = axes.annotate(f"clipped at {clip:g}", (1, clip), xycoords=at, ha="right", va="bottom", color="0.3")
        text.set_fontsize("small")
    return Drawn(figure, "Gradient norm by step", "Before it is clipped, on a log scale.", "gradient")


def _steps_to(found: dict[str, Any], styles: Styles, samples: str) -> Drawn:
    """Steps that each run needs for the accuracies that the baseline reaches (the paper's Fig. 1)."""
    lines = {}
    for name, steps in found["steps"].items():
        if there := [i for i, step in enumerate(steps) if step is not None]:
            lines[name] = [steps[i] for i in there], [100 * found["levels"][i] for i in there]
    figure, axes = plot(lines, styles, "steps needed", f"Avg@{samples} reached, %", few=math.inf, markersize=4)
    axes.set_xlim(left=0)
    caption = f"Steps that each run takes to the accuracies that {found['baseline']} comes to"
    caption += ", on straight lines between evaluations."
    never = [name for name in found["steps"] if name not in lines]
    caption += f" Never there: {', '.join(never)}." if never else ""
    return Drawn(with_legend(figure), "Steps to an accuracy", caption, "steps")


def _time(runs: dict[str, dict[str, float]]) -> Drawn:
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
    caption = "Seconds of all steps, and of the evaluations between them."
    return Drawn(with_legend(figure, columns=4), "Time by phase", caption, "time")
