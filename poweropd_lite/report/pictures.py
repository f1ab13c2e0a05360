"""Which figures a report has, with their titles and captions: those that the runs have numbers for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poweropd_lite.report import step_figures, token_figures
from poweropd_lite.report.drawing import BOUND
from poweropd_lite.report.read import Reference, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = dict[str, dict[str, Any]]  # by the name of the run


@dataclass(frozen=True)
class Drawn:
    """A figure; `file` is its name without ending, "" for one that is a part of another's."""

    figure: "Figure"
    title: str
    caption: str
    file: str
    on_page: bool = True


def pictures(runs: Sequence[Run], numbers: dict[str, Any], teacher: Reference | None) -> Iterator[Drawn]:
    """Draws the figures of the report's `numbers`, in the order of the page."""
    colours = {run.name: i for i, run in enumerate(runs)}
    yield from _accuracy(runs, numbers, colours, teacher)
    yield from _rewards(runs, numbers, colours)
    yield from _health(runs, numbers, colours)
    caption = (
        "Size of the reward by the student's and the teacher's probability of the sampled token. The log ratio grows without "
        "bound where one of the two is small; a large alpha pays only where one of them is near 1. Both axes are stretched toward 0 and 1."
    )
    yield Drawn(token_figures.landscape_figure(numbers["landscape"]), "The reward's landscape", caption, "landscape")


def _accuracy(
    runs: Sequence[Run], numbers: dict[str, Any], colours: dict[str, int], teacher: Reference | None
) -> Iterator[Drawn]:
    samples = "/".join(dict.fromkeys(str(run.config.eval_samples) for run in runs))
    evaluated = _there(numbers["accuracy"])
    if evaluated:
        level = None if teacher is None else teacher.accuracy
        figure = step_figures.accuracy_figure(evaluated, colours, samples, level)
        caption = "Avg@k on the held-out problems."
        if len({found["avg"][0] for found in evaluated.values() if found["step"][0] == 0}) > 1:
            caption += " No line for the base: the runs differ in what they had before training."
        yield Drawn(figure, "Accuracy by step", caption, "accuracy")
        figure = step_figures.line_figure(evaluated, colours, "length", "mean length, tokens", floor=0)
        yield Drawn(figure, "Length by step", "Mean length of the answers sampled in evaluation.", "length")
    if len(runs) > 1 and numbers["steps_to"]["levels"]:
        caption = (
            f"Steps that each run takes to the accuracies that {numbers['baseline']} comes to, "
            "on straight lines between evaluations."
        )
        never = [name for name, steps in numbers["steps_to"]["steps"].items() if not any(s is not None for s in steps)]
        caption += f" Never there: {', '.join(never)}." if never else ""
        figure = step_figures.steps_figure(numbers["steps_to"], colours, samples)
        yield Drawn(figure, "Steps to an accuracy", caption, "steps")


def _rewards(runs: Sequence[Run], numbers: dict[str, Any], colours: dict[str, int]) -> Iterator[Drawn]:
    gradient, reward = _there(numbers["gradient"]), _there(numbers["reward"])
    if gradient:
        clips = {run.config.max_grad_norm for run in runs}
        figure = step_figures.gradient_figure(gradient, colours, clips.pop() if len(clips) == 1 else None)
        yield Drawn(figure, "Gradient norm by step", "Before it is clipped, on a log scale.", "gradient")
    if reward:
        caption = "Outer band: from the least to the greatest reward of any token. Inner band: from the 5th to the 95th percentile."
        bounds = _bounds(reward, "reward/min", "reward/max")
        yield from _panels("Reward by step", caption, "reward", reward, colours, bounds, token_figures.reward_figure)
    if found := numbers["density"]:
        steps = sorted({of["step"] for of in found.values()})
        when = "before training" if steps == [1] else f"at step {steps[0]}, the first that was kept"
        caption = f"Density of the rewards of a step's tokens, on a log scale. Filled: {when}; line: at the last step that was kept.{_outside(found)}"
        both = {name: {"first": of, "last": numbers["density_at_the_end"][name]} for name, of in found.items()}
        bounds = token_figures.range_of([of for pair in both.values() for of in pair.values()])
        yield from _panels("Reward density", caption, "density", both, colours, bounds, token_figures.density_figure)
        caption = f"Line: the mean reward of the tokens at a place, {when}. Band: from the least to the greatest."
        bounds, draw = _bounds(numbers["positions"], "min", "max"), token_figures.positions_figure
        yield from _panels("Reward by place", caption, "positions", numbers["positions"], colours, bounds, draw)


HEALTH = (  # the metric, the file, the title, the caption, how it is drawn
    (
        "rollout/stop_share",
        "stop_share",
        "Completions that stop",
        "Share of a step's rollouts that end with a stop token.",
        {"floor": 0},
    ),
    ("rollout/length", "rollout_length", "Tokens a completion", "Mean length of a step's rollouts.", {"floor": 0}),
    (
        "sampling/kept_mass",
        "kept_mass",
        "Mass kept by truncation",
        "The student's own probability of the ids that top-k and top-p leave it; 1: nothing was cut off.",
        {},
    ),
    (
        "parity/gap",
        "gap",
        "Engine and trainer apart, nats",
        "Mean difference of the two programs' log-probs of the same tokens.",
        {"log": True},
    ),
    (
        "time/tokens_per_second",
        "tokens_per_second",
        "Tokens a second",
        "Sampled tokens by seconds of the whole step.",
        {"floor": 0},
    ),
)


def _health(runs: Sequence[Run], numbers: dict[str, Any], colours: dict[str, int]) -> Iterator[Drawn]:
    for key, file, title, caption, options in HEALTH:
        if key == "sampling/kept_mass" and not any(run.config.top_k or run.config.top_p < 1 for run in runs):
            continue  # nothing is cut off but rows that no token has
        if found := _there(numbers["by_step"][key]):
            yield Drawn(step_figures.line_figure(found, colours, key, title.lower(), **options), title, caption, file)
    if taken := {run.name: numbers["seconds"][run.name] for run in runs if run.steps}:
        caption = "Seconds of all steps, and of the evaluations between them."
        yield Drawn(step_figures.time_figure(taken), "Time by phase", caption, "time")


def _panels(
    title: str,
    caption: str,
    file: str,
    found: Numbers,
    colours: dict[str, int],
    bounds: tuple[float, float],
    draw: "Callable[[Numbers, dict[str, int], tuple[float, float]], Figure]",
) -> Iterator[Drawn]:
    """A figure a run for the page, which a phone can show, and one of all of them as a file."""
    if bounds[0] < -BOUND or bounds[1] > BOUND:
        caption += " Beyond the dotted lines the axis of rewards is logarithmic."
    if len(found) == 1:
        yield Drawn(draw(found, colours, bounds), title, caption, file)
        return
    for name, numbers in found.items():
        yield Drawn(draw({name: numbers}, colours, bounds), f"{title}: {name}", caption, "")
    yield Drawn(draw(found, colours, bounds), title, caption, file, on_page=False)


def _there(found: Numbers) -> Numbers:
    """The runs that have a number at all."""
    return {name: numbers for name, numbers in found.items() if numbers["step"]}


def _bounds(found: Numbers, low: str, high: str) -> tuple[float, float]:
    return (
        min((x for numbers in found.values() for x in numbers[low]), default=0.0),
        max((x for numbers in found.values() for x in numbers[high]), default=0.0),
    )


def _outside(found: Numbers) -> str:
    """Says what the histograms do not show."""
    parts = []
    for name, numbers in found.items():
        outside = numbers["below"] + numbers["above"]
        if outside or numbers["not_finite"]:
            low, high = numbers["edges"][0], numbers["edges"][-1]
            parts.append(
                f" Not shown of {name}: {outside} of {numbers['tokens']:,} tokens, outside of {low:g} to {high:g}, "
                f"and {numbers['not_finite']} that are not finite."
            )
    return "".join(parts)
