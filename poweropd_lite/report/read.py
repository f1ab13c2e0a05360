"""Run folders, finished or not, as the report reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import parse_json, read_json
from poweropd_lite.evaluate.tables import is_own
from poweropd_lite.problems.benchmarks import HELD_OUT, run_benchmarks
from poweropd_lite.run.folder import held_out_by

Line = dict[str, Any]
METRICS = {"step": int}  # what every line of a file has; metrics are numbers besides
_LISTS = ("counts", "position_count", "position_sum", "position_min", "position_max")
_NUMBERS = ("low", "high", "below", "above", "not_finite", "position_width")
TOKENS = {"step": int, **dict.fromkeys(_NUMBERS, int | float), **dict.fromkeys(_LISTS, list)}
SAMPLES = {"step": int, **dict.fromkeys(("kind", "finish", "prompt", "completion"), str)}


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    path: Path
    name: str  # as it stands in legends
    config: Config
    steps: list[Line]  # of metrics.jsonl: a line for each step
    evaluations: list[Line]  # and for each evaluation
    tokens: list[Line]  # tokens.jsonl: histograms and places; empty for runs made before there was one
    samples: list[Line]  # samples.jsonl
    summary: Line | None  # summary.json; None while it runs, or after a kill
    scored: dict[str, "Evaluated"]  # by benchmark: what evaluate found


class Evaluated(NamedTuple):
    """What the evaluate command found on a benchmark: Avg@n, or the mean score by a user's function."""

    n: int
    avg: float
    step: int
    own: bool = False  # by a user's function

    @property
    def title(self) -> str:
        """What `avg` is called."""
        return "mean score" if self.own else f"Avg@{self.n}"

    @property
    def unit(self) -> str:
        """Of `avg`: a share, or a pure number."""
        return "" if self.own else "%"


@dataclass(frozen=True)
class Reference:
    """An accuracy that is not a run's own: the teacher's, or the untrained student's."""

    accuracy: float  # Avg@n, 0 to 1; or the mean score by a user's function
    source: str  # in words
    own: bool = False  # by a user's function
    interval: tuple[float, float] | None = None  # its 95%, where it is known
    titles: Mapping[str, str] | None = None  # by benchmark, such as Avg@8; None of one that was typed

    def is_of(self, scored: Mapping[str, "Evaluated"]) -> bool:
        """Whether it is of what evaluate found of a run; of what was typed the user says so."""
        return self.titles is None or self.titles == {name: found.title for name, found in scored.items()}


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Returns the runs in the folders `paths`, named apart; raises UserError for a folder that is no run."""
    folders = [Path(path) for path in paths]
    if not folders:
        raise UserError("no run to report on; type the folder that train wrote, such as runs/power10-seed0")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; leave one out")
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read(folder: Path, name: str) -> Run:
    if not (folder / "metrics.jsonl").is_file() or not (folder / "config.yaml").is_file():
        what = "it holds no metrics.jsonl and config.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is no run: {what}; type the folder that train wrote, such as runs/power10-seed0")
    lines = [{k: _number(v) for k, v in line.items()} for line in read_lines(folder / "metrics.jsonl", METRICS)]
    if not lines:
        raise UserError(f"{folder} has no metrics yet: nothing was trained or evaluated; wait for its first step")
    try:
        summary = {**read_json(folder / "summary.json")}
    except FileNotFoundError:
        summary = None
    except (ValueError, TypeError) as error:
        mend = "remove it, and the report does without"
        raise UserError(f"{folder}/summary.json is no JSON object ({error}); {mend}") from None
    steps = [line for line in lines if "tokens/loss" in line]
    evaluations = [line for line in lines if any(key.startswith("eval/") for key in line)]
    tokens, samples = read_lines(folder / "tokens.jsonl", TOKENS), read_lines(folder / "samples.jsonl", SAMPLES)
    config = load_config(folder / "config.yaml")
    return Run(folder, name, config, steps, evaluations, tokens, samples, summary, _scored(folder))


def _scored(folder: Path) -> dict[str, Evaluated]:
    """What the evaluate command found of the latest step that it was run on; nothing where it was never run."""
    found = {}
    for file in sorted(folder.glob("eval/step_*/results.json")):
        try:
            results = read_json(file)
            n, step = results["n"], int(file.parent.name.removeprefix("step_").split("-")[0])
            rows, own = results["benchmarks"].items(), is_own(results)
            found = {name: Evaluated(n, float(row[f"avg@{n}"]), step, own) for name, row in rows}
        except (OSError, ValueError, KeyError, TypeError):
            mend = f"make it anew: python -m poweropd_lite.evaluate --regrade {file.parent}"
            raise UserError(f"{file} holds no results; {mend}") from None
    return found


def read_lines(path: Path, wanted: dict[str, Any]) -> list[Line]:
    """Returns the objects of a JSON Lines file, but for a last line that is being written; [] if there is no file.

    `wanted` has by key what a line holds there: a type or several. Raises UserError for any other line.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # a text may hold other line ends
        try:
            values = {**parse_json(line)}
            wrong = [key for key, kind in wanted.items() if not isinstance(values.get(key), kind)]
        except (ValueError, TypeError):  # UnicodeDecodeError is a ValueError
            raise UserError(f"line {number} of {path} is not a JSON object; was it edited? take the line out") from None
        if wanted is METRICS:
            wrong += [key for key, value in values.items() if not isinstance(_number(value), int | float)]
            wrong += ["time/step"] if "tokens/loss" in values and "time/step" not in values else []
        if wrong:
            raise UserError(f"line {number} of {path} has no usable {wrong[0]}; was it edited? take the line out")
        found.append(values)
    return found


def read_reference(given: str, runs: Sequence[Run], role: str = "teacher") -> Reference:
    """Returns a model's accuracy: of the folder of its evaluation, or a percentage as it stands, such as 96.6.

    `role` is the flag with which it was given: teacher or base.

    Raises UserError for a folder that holds no results, or results of other benchmarks than the runs'.
    """
    try:
        percent = float(given.removesuffix("%"))
    except ValueError:
        pass
    else:
        if not (role == "base" or percent) or not 0 <= percent <= 100:
            raise UserError(f"{role}: found {given}, but an accuracy is between 0 and 100, in percent, such as 96.6")
        if percent <= 1 and role == "teacher":
            raise UserError(f"{role}: found {given}, but an accuracy is in percent; did you mean {100 * percent:g}?")
        return Reference(percent / 100, "as given")
    try:
        results = read_json(Path(given) / "results.json")
        n = results["n"]
        accuracy, benchmarks = float(results["mean"][f"avg@{n}"]), list(results["benchmarks"])
        own, bounds = is_own(results), results["mean"].get(f"avg@{n}_interval")
        interval = None if bounds is None else (float(bounds[0]), float(bounds[1]))
    except (OSError, ValueError, KeyError, TypeError):
        how = f"the folder that `python -m poweropd_lite.evaluate --model {role.upper()}` named, or its accuracy in percent"
        raise UserError(f"{given} holds no results of an evaluation; type --{role} with {how}") from None
    for run in runs:
        theirs = run_benchmarks(run.config)
        if theirs and set(theirs) != set(benchmarks):
            both = f"{given} is of {', '.join(benchmarks)}, and {run.path} was evaluated on {', '.join(theirs)}"
            raise UserError(f"{both}; evaluate the {role} on the same: --model {role.upper()} --problems-of {run.path}")
        of = results["benchmarks"][HELD_OUT].get("of") if HELD_OUT in theirs else None
        if HELD_OUT in theirs and (of is None or of != held_out_by(run.path, run.config)):
            found = f"{given} is not known to be of the prompts that {run.path} held out"
            raise UserError(
                f"{found}; evaluate the {role} on the same: --model {role.upper()} --problems-of {run.path}"
            )
    rows, scored = (
        results["benchmarks"],
        [run.config for run in runs if any("eval/greedy" in e for e in run.evaluations)],
    )
    same = all(c.eval_samples == n and _same_problems(c, *row) for c in scored for row in rows.items())
    rough = "" if same else "; of other problems or samples than a run's, so shares of it are rough"
    counts = ", ".join(f"{row['problems']:,} of {name}" for name, row in rows.items())
    title = "mean score" if own else f"Avg@{n}"
    return Reference(accuracy, f"{title} on {counts} ({given}{rough})", own, interval, dict.fromkeys(rows, title))


def _same_problems(run: Config, name: str, row: Line) -> bool:
    """Whether a benchmark was evaluated on a run's own problems, which are the first of it, or all that it kept out."""
    asked = run.hold_out if name == HELD_OUT else run.eval_problems
    return asked == row["problems"] or (asked > row["problems"] and bool(row.get("whole")))


def _number(value: Any) -> Any:
    """A number that JSON does not have stands there as its name."""
    return float(value) if value in ("nan", "inf", "-inf") else value
