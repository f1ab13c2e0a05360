"""Run folders, finished or not, as the report reads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poweropd_lite.config import Config, load_config
from poweropd_lite.errors import UserError

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    path: Path
    name: str  # as it stands in legends
    config: Config
    steps: list[Line] = field(repr=False)  # of metrics.jsonl: a line for each step
    evaluations: list[Line] = field(repr=False)  # and for each evaluation
    tokens: list[Line] = field(
        repr=False
    )  # tokens.jsonl: histograms and places; empty for runs made before there was one
    samples: list[Line] = field(repr=False)  # samples.jsonl
    summary: dict[str, Any] | None = field(repr=False)  # summary.json; None while it runs, or after a kill
    scored: dict[str, tuple[int, float]] = field(repr=False)  # by benchmark, n and Avg@n of evaluate at its last step

    @property
    def reward(self) -> str:
        """The reward's name, such as "power 10" or "tanh"."""
        return f"power {self.config.alpha:g}" if self.config.reward == "power" else self.config.reward


@dataclass(frozen=True)
class Reference:
    """An accuracy that is not a run's own: the teacher's."""

    accuracy: float  # Avg@n, 0 to 1
    source: str  # in words


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Returns the runs in the folders `paths`, named apart; raises UserError for a folder that is no run."""
    folders = [Path(path) for path in paths]
    if not folders:
        raise UserError("no run to report on; type the folder that train wrote, such as runs/power10-seed0")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; leave one out")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    if not (folder / "metrics.jsonl").is_file() or not (folder / "config.yaml").is_file():
        what = "it holds no metrics.jsonl and config.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is no run: {what}; type the folder that train wrote, such as runs/power10-seed0")
    lines = [{key: _number(value) for key, value in line.items()} for line in read_lines(folder / "metrics.jsonl")]
    if not lines:
        raise UserError(f"{folder} has no metrics yet: nothing was trained or evaluated; wait for its first step")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        summary = None
    except ValueError as error:
        raise UserError(
            f"{folder}/summary.json is not JSON ({error}); remove it, and the report does without"
        ) from None
    return Run(
        folder,
        name,
        load_config(folder / "config.yaml"),
        [line for line in lines if "tokens/loss" in line],
        [line for line in lines if "eval/length" in line],
        read_lines(folder / "tokens.jsonl"),
        read_lines(folder / "samples.jsonl"),
        summary,
        _scored(folder),
    )


def _scored(folder: Path) -> dict[str, tuple[int, float]]:
    """What the evaluate command found of the run's last step; nothing where it is being written, or was never run."""
    found = {}
    for file in sorted(folder.glob("eval/step_*/results.json")):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            n = results["n"]
            found = {name: (n, float(row[f"avg@{n}"])) for name, row in results["benchmarks"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{file} holds no results; make it anew: python -m poweropd_lite.evaluate --regrade {file.parent}"
            ) from None
    return found


def read_lines(path: Path) -> list[Line]:
    """Returns the objects of a JSON Lines file, without a last line that is still being written; [] if there is no file.

    Raises UserError for any other line that is not an object.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8").split("\n")[:-1], 1
    ):  # a text may hold other line ends
        try:
            found.append({**json.loads(line)})
        except (ValueError, TypeError):
            raise UserError(f"line {number} of {path} is not a JSON object; was it edited? take the line out") from None
    return found


def read_teacher(given: str, runs: Sequence[Run]) -> Reference:
    """Returns the teacher's accuracy: of the folder of its evaluation, or a percentage as it stands, such as 96.6.

    Raises UserError for a folder that holds no results, or results of other benchmarks than the runs'.
    """
    try:
        percent = float(given.removesuffix("%"))
    except ValueError:
        pass
    else:
        if not 0 < percent <= 100:
            raise UserError(f"teacher: found {given}, but an accuracy is between 0 and 100, in percent, such as 96.6")
        return Reference(percent / 100, f"{percent:g}% as given")
    file = Path(given) / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        n = results["n"]
        accuracy, benchmarks = float(results["mean"][f"avg@{n}"]), list(results["benchmarks"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{given} holds no results of an evaluation; type --teacher with the folder that `python -m poweropd_lite.evaluate --model "
            "TEACHER` named, or with its accuracy in percent"
        ) from None
    for run in runs:
        theirs = [name.strip() for name in (run.config.eval_benchmarks or "").split(",") if name.strip()]
        if theirs and sorted(theirs) != sorted(benchmarks):
            raise UserError(
                f"{given} is of {', '.join(benchmarks)}, and {run.path} was evaluated on {', '.join(theirs)}; evaluate the teacher on the same"
            )
    counts = ", ".join(f"{b['problems']:,} of {name}" for name, b in results["benchmarks"].items())
    return Reference(accuracy, f"Avg@{n} on {counts} ({given})")


def _number(value: Any) -> Any:
    """A number that JSON does not have stands there as its name."""
    return float(value) if value in ("nan", "inf", "-inf") else value
