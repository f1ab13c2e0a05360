"""The paper's own numbers (arXiv 2606.17199, Tables 2 and 3), and which row of them a run is to be compared with."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from poweropd_lite.base.config import Config
from poweropd_lite.base.teachers import called


@dataclass(frozen=True)
class PaperRow:
    """One row: a student, a teacher and a reward. Scores are percent, lengths tokens."""

    title: str
    benchmarks: dict[str, dict[str, float]]  # by benchmark: avg@8, pass@8, length
    mean: dict[str, float]
    exact: bool  # the run's own reward and alpha, rather than the nearest that the paper has


def paper_row(run: Config) -> PaperRow | None:
    """Returns the row of a run's student, teacher and reward, at its alpha or the nearest; None if there is none."""
    rows = json.loads((Path(__file__).parent / "paper_tables.json").read_text(encoding="utf-8"))["rows"]
    mine = (Path(run.student).name.lower(), Path(called(run, "teacher")).name.lower(), run.reward)
    fitting = [row for row in rows if (row["student"].lower(), row["teacher"].lower(), row["reward"]) == mine]
    if not fitting or (run.baseline, run.keep, run.weight) != ("none", "all", "none"):
        return None
    power = run.reward == "power"
    row = min(fitting, key=lambda r: abs(math.log(r["alpha"] / run.alpha))) if power else fitting[0]
    exact = not power or row["alpha"] == run.alpha
    reward = f"power {row['alpha']:g}" if power else row["reward"]
    title = f"{row['student']} <- {row['teacher']}, {reward}" + ("" if exact else f" (nearest to alpha {run.alpha:g})")
    return PaperRow(title, row["benchmarks"], row["mean"], exact)
