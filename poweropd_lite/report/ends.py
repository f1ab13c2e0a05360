"""What a setting came to, a number a seed: the one that the page answers with, and what differs beyond noise."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from poweropd_lite.base.intervals import difference
from poweropd_lite.base.tables import score_names
from poweropd_lite.report.groups import Group, settings
from poweropd_lite.report.read import Evaluated, Run
from poweropd_lite.report.series import accuracy, unit_of, with_finite

Seeds = dict[int, float]  # a value a seed
LAST = 10  # a tenth of a run's steps is its beginning, and its end


@dataclass(frozen=True)
class End:
    """A quantity at the end of training; `values` has the settings all of whose seeds have it."""

    name: str  # such as Avg@8 at the end
    axis: str  # as it stands beside an axis
    unit: str  # "%" (values 0 to 1), "nats", or "" of a user's scores
    own: bool  # of training's own evaluations
    values: dict[str, Seeds]  # by label


def end_of(groups: Sequence[Group]) -> End | None:
    """Returns what tells best how runs ended: their own evaluations, evaluate's, or the KL to the teacher."""
    named = {
        score_names(group.config.eval_samples, bool(group.config.eval_grader))[0]
        for group in groups
        if accuracy(group.runs)["step"]
    }
    found, unit = min(named) if len(named) == 1 else "accuracy", unit_of(groups)
    scored = next((run.scored for group in groups for run in group.runs if run.scored), {})
    first = next(iter(scored.values()), Evaluated(0, 0.0, 0))
    evaluated = f"{first.title} on {', '.join(scored)} by evaluate"
    kl = "KL to the teacher, nats a token"
    choices: list[tuple[str, str, str, Callable[[Run], float | None]]] = [
        (found, f"{found}, %" if unit else found, unit, _own),
        (
            evaluated,
            f"{first.title} by evaluate, {first.unit}".rstrip(", "),
            first.unit,
            lambda run: _evaluated(run, scored),
        ),
        ("KL to the teacher on held-out prompts", kl, "nats", lambda run: _kl(run.evaluations, "eval/kl")),
        ("KL to the teacher in training", kl, "nats", lambda run: _kl(run.steps, "kl/train")),
    ]
    for name, axis, size, take in choices:
        values = {}
        for group in groups:
            each = [take(run) for run in group.runs]
            if all(value is not None for value in each):
                values[group.label] = {s: v for s, v in zip(group.seeds, each, strict=True) if v is not None}
        if values:
            return End(name, axis, size, take is _own, values)
    return None


def _own(run: Run) -> float | None:
    found = accuracy([run])
    return found["avg"][-1] if any(found["step"]) else None


def _evaluated(run: Run, scored: dict[str, Evaluated]) -> float | None:
    """The mean over the benchmarks of what evaluate found; None for other benchmarks or another n than `scored`'s."""
    same = {name: of.title for name, of in run.scored.items()} == {name: of.title for name, of in scored.items()}
    return statistics.fmean(of.avg for of in run.scored.values()) if scored and same else None


def _kl(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    found = kl_ends(lines, key)
    return found[1] if found and lines[-1]["step"] else None


def kl_ends(lines: Sequence[dict[str, Any]], key: str) -> tuple[float, float] | None:
    """Returns the first and last KL under `key`; None if there is none.

    Of training steps a tenth each is taken together: one step's estimate is of its own few prompts.
    """
    found = [line[key] for line in with_finite(lines, [key])]
    part = math.ceil(len(found) / LAST) if key == "kl/train" else 1
    return (statistics.fmean(found[:part]), statistics.fmean(found[-part:])) if found else None


def median_norms(groups: Sequence[Group]) -> dict[str, Seeds]:
    """Returns each run's median gradient norm over its steps, by label; of settings all of whose seeds have steps."""
    out: dict[str, Seeds] = {}
    for group in groups:
        norms = [
            [line["optim/grad_norm"] for line in with_finite(run.steps, ["optim/grad_norm"])] for run in group.runs
        ]
        if all(norms):
            out[group.label] = dict(zip(group.seeds, map(statistics.median, norms), strict=True))
    return out


def by_alpha(groups: Sequence[Group], values: dict[str, Seeds]) -> dict[str, Any]:
    """Returns mean, least and greatest of `values` over the seeds against alpha, and of other rewards as levels.

    "curves": by name, power runs alike in all but alpha, of two alphas or more; none if there is no such curve.
    """
    curves: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.config.reward == "power" and group.label in values:
            curves.setdefault(tuple((settings(group.config) | {"alpha": None}).values()), []).append(group)
    out: dict[str, Any] = {}
    for alike in curves.values():
        alike = sorted(alike, key=lambda group: group.config.alpha)
        if len({group.config.alpha for group in alike}) > 1:
            points = [_point(values[group.label]) for group in alike]
            own = f"power {alike[0].config.alpha:g}"  # what a chosen label may not have
            name = alike[0].label.replace(own, "power", 1) if own in alike[0].label else "power"
            name = name if name not in out else f"{name} ({len(out) + 1})"
            out[name] = {
                "alpha": [group.config.alpha for group in alike],
                **{k: [p[k] for p in points] for k in points[0]},
            }
    levels = {g.label: _point(values[g.label]) for g in groups if g.config.reward != "power" and g.label in values}
    return {"curves": out, "levels": levels if out else {}}


def _point(values: Seeds) -> dict[str, float]:
    return {"mean": statistics.fmean(values.values()), "low": min(values.values()), "high": max(values.values())}


@dataclass(frozen=True)
class Difference:
    """A setting against the baseline; `half`, of its 95% interval, is None where a single seed leaves noise unknown."""

    value: float
    half: float | None

    @property
    def beyond_noise(self) -> bool:
        return self.half is not None and abs(self.value) > self.half


def differences(values: dict[str, Seeds], baseline: str) -> dict[str, Difference]:
    """Returns the difference of every other setting from the baseline, by label; {} where that has no values."""
    base = values.get(baseline)
    others = {label: seeds for label, seeds in values.items() if label != baseline}
    return {label: Difference(*difference(seeds, base)) for label, seeds in others.items()} if base else {}
