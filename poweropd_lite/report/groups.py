"""Runs that differ by seed alone are one curve: which they are, in which order, and what they are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config, marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.teachers import called, name_of
from poweropd_lite.report.read import Run
from poweropd_lite.rewards.table import REWARDS

PAY = ("reward", "alpha", "reward_settings", "baseline", "keep", "weight")  # what a reward's label says
LONGEST = 120  # letters of a title's first part
MOST_SETTINGS = 3  # in a label, beside the reward; runs that differ in more are called by their folders


@dataclass(frozen=True)
class Group:
    """One setting over its seeds: a curve of every figure, a column of every table."""

    label: str
    runs: list[Run]  # by seed

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]


def group_runs(runs: Sequence[Run], labels: Sequence[str] | None = None) -> list[Group]:
    """Returns the runs as groups, sorted by reward, alpha and what else differs, then as given; labelled by that.

    A seed that stands twice under one setting makes every run of this setting a group of its own. `labels` are those
    to take instead, one a group. Raises UserError for another number of them, or one that stands twice.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(settings(run.config).values()), []).append(run)
    parts: list[list[Run]] = []
    for alike in found.values():
        twice = len({run.config.seed for run in alike}) < len(alike)
        parts += [[run] for run in alike] if twice else [sorted(alike, key=lambda run: run.config.seed)]
    differing = differing_settings([part[0].config for part in parts])
    parts.sort(key=lambda part: _order(part[0].config, list(differing)))
    groups = [Group(label, part) for label, part in zip(_labels(parts, differing), parts, strict=True)]
    return groups if labels is None else _relabelled(groups, [label.strip() for label in labels])


def settings(config: Config) -> dict[str, Any]:
    """Returns what makes two runs one setting: all but the seed, what changes no number, and other rewards' settings."""
    values = config.model_dump(exclude={"seed", "teacher_offload", *marked("sitting", "found")})
    values["teacher"] = name_of(config, "teacher")  # a server may move
    values |= {name: json.dumps(value) for name, value in values.items() if isinstance(value, dict)}  # can be a key
    return {name: None if name in config.ignored else value for name, value in values.items()}


def differing_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Returns the settings that differ, as `settings` has them, with each config's value: "ignored" by its reward."""
    found, each = {}, [settings(config) for config in configs]
    for name in each[0] if configs else ():
        own = [name not in config.ignored for config in configs]
        values = [of[name] if mine else "ignored" for of, mine in zip(each, own, strict=True)]
        taken = [value for value, mine in zip(values, own, strict=True) if mine]
        if any(value != taken[0] for value in taken):
            found[name] = values
    return found


def _order(config: Config, differing: Sequence[str]) -> list[tuple[int, Any]]:
    """What a list of configs is sorted by: numbers by their size, before texts."""
    values = settings(config)
    place = [*REWARDS, config.reward].index(config.reward)
    first = [place, *(values[name] for name in differing if name != "reward")]
    return [(0, 0.0) if v is None else (1, float(v)) if isinstance(v, int | float) else (2, v) for v in first]


def _labels(parts: Sequence[list[Run]], differing: dict[str, Any]) -> list[str]:
    """A label a group: the reward with its alpha and other differing settings, evaluation's only if it takes them."""
    configs = [part[0].config for part in parts]
    if len(parts) == 1:
        return [parts[0][0].name if len(parts[0]) == 1 else configs[0].reward_label]
    others = [name for name in differing if name not in PAY]
    pay = len(others) < len(differing)
    for names in ([name for name in others if not name.startswith(("eval_", "kl_"))], others):
        labels = [label_of(config, pay, names) for config in configs]
        if len(set(labels)) == len(labels) and len(names) <= MOST_SETTINGS:
            return labels
    names = [part[0].name for part in parts]  # one setting more than once, or runs with little in common
    if not pay:
        return names
    return [f"{config.reward_label}, {name}" for config, name in zip(configs, names, strict=True)]


def label_of(config: Config, pay: bool, names: Sequence[str]) -> str:
    """Returns the reward, if `pay`, and those settings of `names` that it has, as words: "power 10, lr 0.001"."""
    names = [name for name in names if name not in config.ignored]
    return ", ".join([config.reward_label] * pay + [f"{name} {shown(getattr(config, name))}" for name in names])


def shown(value: Any) -> str:
    """Returns a setting's value as it stands in a label."""
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, str) else str(value)


def _relabelled(groups: list[Group], labels: Sequence[str]) -> list[Group]:
    if len(labels) != len(groups) or not all(labels):
        curves = "; ".join(f"{group.label} ({', '.join(run.name for run in group.runs)})" for group in groups)
        many = f"{len(groups)} curves, in this order" if len(groups) > 1 else "1 curve"
        raise UserError(f"labels: found {len(labels)}, and there are {many}: {curves}; type one for each")
    if len(set(labels)) < len(labels):
        raise UserError(f"labels: found {', '.join(labels)}, and two curves can't have one name; type different ones")
    return [Group(label, group.runs) for label, group in zip(labels, groups, strict=True)]


def title(groups: Sequence[Group]) -> str:
    """Returns what is compared: "power 1, 5, 10 on bundled-student <- bundled-teacher, 3 seeds each"."""
    pairs = {_pair(group.config) for group in groups}
    counts = {len(group.runs) for group in groups}
    rewards = {group.config.reward_label for group in groups}
    what = _joined([group.label for group in groups])
    if len(rewards) == 1 and (reward := min(rewards)) not in what:
        what = f"{reward}: {what}" if len(groups) > 1 else f"{what}, {reward}"
    if len(groups) == 1 and counts == {1}:
        many = f"seed {groups[0].seeds[0]}"
    elif len(counts) == 1:
        many = f"{min(counts)} seed{'s' * (counts != {1})}" + " each" * (len(groups) > 1)
    else:
        many = f"{min(counts)} to {max(counts)} seeds"
    return f"{what}{f' on {min(pairs)}' if len(pairs) == 1 else ''}, {many}"


def _pair(config: Config) -> str:
    student, teacher = (Path(called(config, role)).name for role in ("student", "teacher"))
    return f"{student} <- {teacher}"


def _joined(labels: Sequence[str]) -> str:
    """Labels in a row; of those that differ in their last word alone, this word: power 1, 5, 10 and log_ratio."""
    heads: dict[str, list[str]] = {}
    for label in labels:
        head, _, last = label.rpartition(" ")
        heads.setdefault(head or label, []).append(last if head else "")
    parts = [", ".join([f"{head} {first}".strip(), *others]) for head, (first, *others) in heads.items()]
    text = parts[0] if len(parts) == 1 else f"{'; '.join(parts[:-1])} and {parts[-1]}"
    return text if len(text) <= LONGEST else f"{len(labels)} settings"
