"""Which pictures a report has, with titles and captions: those that runs have numbers for. Here those over steps."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from poweropd_lite.base.intervals import NORMAL
from poweropd_lite.base.tables import score_names
from poweropd_lite.report.drawing import (
    INK,
    Drawn,
    Numbers,
    Pen,
    band,
    label,
    log_scale,
    new_figure,
    pen,
    plot,
    scaled,
    whole_ticks,
    with_legend,
)
from poweropd_lite.report.end_pictures import BASE, alpha_pictures, before_training
from poweropd_lite.report.groups import Group
from poweropd_lite.report.read import Reference
from poweropd_lite.report.reward_pictures import landscape_picture, reward_pictures
from poweropd_lite.report.series import unit_of

CUT = "The student's own probability of the ids that top-k and top-p leave it; 1: nothing was cut off."
APART = "Mean difference of the two programs' log-probs of the same tokens."
STOPS = "Share of a step's rollouts that end with a stop token."
RATE = "Sampled tokens by seconds of the whole step. What else the machine did at the time is in them."
HEALTH: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # by metric: file, title, caption, how it is drawn
    "rollout/length": ("rollout_length", "Tokens a completion", "Mean length of a step's rollouts.", {"floor": 0}),
    "rollout/stop_share": ("stop_share", "Completions that stop", STOPS, {"floor": 0}),
    "sampling/kept_mass": ("kept_mass", "Mass kept by truncation", CUT, {}),
    "parity/gap": ("gap", "Engine and trainer apart, nats", APART, {"log": True}),
    "time/tokens_per_second": ("tokens_per_second", "Tokens a second", RATE, {"floor": 0}),
}
WHOLE = ("length", "rollout/length", "time/tokens_per_second")  # counted in whole numbers
NEAR = 10  # a clip at more than so many times the largest norm is said, not drawn


def pictures(
    groups: Sequence[Group],
    numbers: dict[str, Any],
    teacher: Reference | None,
    style: str = "screen",
    base: Reference | None = None,
) -> Iterator[Drawn]:
    """Draws the figures of the report's `numbers`, in the order of the page; matplotlib's settings are the style's.

    `base` is the student's before training, instead of what the runs' own evaluations say.
    """
    ours = pen([group.label for group in groups], style)
    names = (score_names(group.config.eval_samples, bool(group.config.eval_grader))[0] for group in groups)
    name, unit = "/".join(dict.fromkeys(names)), unit_of(groups)
    counts = {len(group.runs) for group in groups} - {1}
    seeds = f" Line: the mean over {'/'.join(map(str, sorted(counts)))} seeds; band: from the lowest to the highest."
    over = seeds if counts else ""
    evaluated = _there(numbers["accuracy"])
    if evaluated:
        yield _accuracy(evaluated, ours, name, unit, teacher, base, over)
    if kl := {name: of for name, of in numbers["kl"].items() if of["train"]["step"] or of["held_out"]["step"]}:
        yield _kl(kl, ours, bool(counts))
    if gradient := _there(numbers["gradient"]):
        yield _gradient(gradient, ours, {group.config.max_grad_norm for group in groups}, over)
    yield from alpha_pictures(numbers, ours, teacher, base)
    if evaluated:
        figure = _by_step(evaluated, ours, "length", "mean length, tokens", floor=0)
        yield Drawn(
            with_legend(figure, ours.look),
            "Length by step",
            f"Mean length of the answers sampled in evaluation.{over}",
            "length",
        )
    if len(groups) > 1 and numbers["steps_to"]["levels"]:
        yield _steps_to(numbers["steps_to"], ours, name, unit)
    yield from reward_pictures(numbers, ours)
    for key, (file, title, caption, how) in HEALTH.items():
        if key == "sampling/kept_mass" and not any(g.config.top_k or g.config.top_p < 1 for g in groups):
            continue  # nothing is cut off but rows that no token has
        if found := _there(numbers["by_step"][key]):
            yield Drawn(
                with_legend(_by_step(found, ours, key, title.lower(), **how), ours.look), title, caption + over, file
            )
    if taken := {group.label: numbers["seconds"][group.label] for group in groups if any(r.steps for r in group.runs)}:
        yield _time(taken, ours, bool(counts))
    yield landscape_picture(numbers["landscape"], ours.look)


def _there(found: Numbers) -> Numbers:
    return {name: numbers for name, numbers in found.items() if numbers["step"]}


def _accuracy(
    found: Numbers, ours: Pen, name: str, unit: str, teacher: Reference | None, base: Reference | None, over: str
) -> Drawn:
    """Avg@k, or a user's mean score, by step, with the base (before training) and the teacher as lines."""
    scale = 100 if unit else 1
    figure, axes = plot(found, "avg", ours, "step", f"{name}, %" if unit else name, scale=scale, few=math.inf)
    (alone, of), *others = found.items()
    if not others and any(of.get("error", ())):  # of several the bars would hide one another
        bars = [NORMAL * scale * (error or 0) for error in of["error"]]
        points = [scale * avg for avg in of["avg"]]
        axes.errorbar(of["step"], points, bars, fmt="none", capsize=2, ecolor=ours.ink[alone]["color"])
        over += " Bars: 1.96 standard errors over the problems."
    before = before_training(found, base, unit)
    if len(before) == 1:
        axes.axhline(scale * min(before), color="0.6", linewidth=1, linestyle=":", label=BASE)
    if teacher is not None and teacher.own != bool(unit):
        axes.axhline(scale * teacher.accuracy, color="0.3", linewidth=1, linestyle="--", label="teacher")
        if teacher.interval is not None:
            axes.axhspan(*(scale * end for end in teacher.interval), color="0.3", alpha=0.08, linewidth=0)
            over += " Grey: the teacher's 95% interval over problems."
    if unit:
        highest = axes.get_ylim()[1]
        axes.set_ylim(0, 102 if highest > 50 else max(highest, 1))  # all may be 0
    no_line = " No line for the base: the runs differ in what they had before training."
    caption, title = ("Avg@k on", "Accuracy") if unit else ("What a function of one's own gives on", "Mean score")
    caption += " the held-out problems." + over + (no_line if len(before) > 1 else "")
    return Drawn(with_legend(figure, ours.look), f"{title} by step", caption, "accuracy", main=True)


def _by_step(found: Numbers, ours: Pen, key: str, up: str, log: bool = False, floor: float | None = None) -> Figure:
    figure, axes = plot(found, key, ours, "step", up, linewidth=1.2)
    seen = [v for of in found.values() for end in ("", "_low", "_high") for v in of.get(key + end, ()) if v > 0]
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if key in WHOLE:
        whole_ticks(axes, "y")
    if log and seen:
        log_scale(axes, seen)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    return figure


def _gradient(found: Numbers, ours: Pen, clips: set[float], over: str) -> Drawn:
    """Gradient norm before the clip, by step; the line is where it is clipped, if that is one number and near."""
    key = "optim/grad_norm"
    figure = _by_step(found, ours, key, "gradient norm", log=True)
    axes, largest = figure.axes[0], max(max(of.get(f"{key}_high", of[key])) for of in found.values())
    caption = f"Before it is clipped, on a log scale.{over}"
    if len(clips) == 1:
        if min(clips) <= NEAR * largest:
            axes.axhline(min(clips), color="0.4", linewidth=1, linestyle="--", label=f"clipped at {min(clips):g}")
            axes.set_ylim(top=max(axes.get_ylim()[1], 1.25 * min(clips)))
        else:
            caption += f" The clip, at {min(clips):g}, is far above."
    return Drawn(with_legend(figure, ours.look), "Gradient norm by step", caption, "gradient", main=True)


def _kl(found: Numbers, ours: Pen, several: bool) -> Drawn:
    """The KL to the teacher: in training a thin line, on held-out prompts points with bars."""
    figure, axes = new_figure(ours.look)
    width = max((step for of in found.values() for kind in of.values() for step in kind["step"]), default=0)
    for i, (name, of) in enumerate(found.items()):
        train, held_out, ink = of["train"], of["held_out"], ours.ink[name]
        axes.plot(train["step"], train["smooth"], linewidth=0.9, label=label(name), **ink)
        band(axes, train, "kl", ink["color"])
        if held_out["step"]:
            if "error" in held_out:
                bars: Any = [NORMAL * (error or 0) for error in held_out["error"]]
            else:
                low, high = held_out["kl_low"], held_out["kl_high"]
                bars = [[m - v for m, v in zip(held_out["kl"], low, strict=True)]]
                bars += [[v - m for m, v in zip(held_out["kl"], high, strict=True)]]
            apart = 0.008 * width * (i - (len(found) - 1) / 2)  # so that no setting hides another
            axes.errorbar(
                [step + apart for step in held_out["step"]],
                held_out["kl"],
                bars,
                fmt="o",
                markersize=4,
                capsize=2,
                color=ink["color"],
            )
    axes.set(xlabel="step", ylabel="KL to the teacher, nats a token")
    axes.set_ylim(bottom=0)
    whole_ticks(axes, "x")
    points = any(of["held_out"]["step"] for of in found.values())
    caption = "Line: on the training rollouts, a running mean over a twentieth of the steps."
    caption += f" Points: on held-out prompts{', set a little apart' * (len(found) > 1)}." * points
    if several:
        caption += f" Of several seeds: the mean; band{' and bars' * points} from the lowest to the highest."
    elif points:
        caption += " Bars: 1.96 standard errors."
    return Drawn(with_legend(figure, ours.look), "KL to the teacher by step", caption, "kl", main=True)


def _steps_to(found: dict[str, Any], ours: Pen, name: str, unit: str) -> Drawn:
    """Steps that each setting needs for the accuracies that the baseline reaches (the paper's Fig. 1)."""
    lines = {}
    for label_, steps in found["steps"].items():
        if there := [i for i, step in enumerate(steps) if step is not None]:
            lines[label_] = {"step": [steps[i] for i in there], "avg": [found["levels"][i] for i in there]}
    how: dict[str, Any] = {"scale": 100 if unit else 1, "few": math.inf, "markersize": 4}
    figure, axes = plot(lines, "avg", ours, "steps needed", f"{name} reached{', %' if unit else ''}", **how)
    axes.set_xlim(left=0)
    caption = f"Steps that each setting takes to the accuracies that {found['baseline']} comes to"
    caption += ", on straight lines between evaluations."
    never = [name for name in found["steps"] if name not in lines]
    caption += f" Never there: {', '.join(never)}." if never else ""
    return Drawn(with_legend(figure, ours.look), "Steps to an accuracy", caption, "steps")


def _time(found: dict[str, dict[str, float]], ours: Pen, several: bool) -> Drawn:
    names = list(found)
    phases = [phase for phase in found[names[0]] if any(seconds[phase] for seconds in found.values())]
    unit, word = (3600, "hours") if max(sum(s.values()) for s in found.values()) > 2 * 3600 else (1, "seconds")
    shown = [textwrap.fill(label(name), 20) for name in names]  # beside the bars: long names take height, not width
    lines = 2 + sum(max(2, text.count("\n") + 1) for text in shown)
    figure, axes = new_figure(ours.look, size=(ours.look.width, 0.4 + 0.16 * lines))
    left = [0.0] * len(names)
    for k, phase in enumerate(phases):
        widths = scaled([found[name][phase] for name in names], 1 / unit)
        axes.barh(range(len(names)), widths, left=left, color=INK[k % len(INK)], label=phase, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), shown, fontsize=ours.look.small)
    axes.invert_yaxis()
    axes.set_xlabel(word)
    caption = "Seconds of all steps, and of the evaluations between them" + ("; means over seeds." if several else ".")
    caption += " What else the machine did at the time is in them." * (len(names) > 1)
    return Drawn(with_legend(figure, ours.look), "Time by phase", caption, "time")
