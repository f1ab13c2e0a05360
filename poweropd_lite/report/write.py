"""The report of some runs: everything read and computed first, then one folder, whole or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import check_writable, whole_folder, write_json, write_text
from poweropd_lite.report.drawing import LOOKS, rendered
from poweropd_lite.report.ends import by_alpha, end_of, median_norms
from poweropd_lite.report.groups import Group, differing_settings, group_runs, title
from poweropd_lite.report.page import page
from poweropd_lite.report.pictures import HEALTH, pictures
from poweropd_lite.report.read import Reference, Run, read_reference, read_runs
from poweropd_lite.report.series import (
    accuracy,
    by_step,
    density,
    divergence,
    landscape,
    phases,
    pooled,
    positions,
    steps_to,
)
from poweropd_lite.report.settings import ReportConfig
from poweropd_lite.report.table import table
from poweropd_lite.report.words import answer, sentences

ALPHAS = (0.1, 1.0, 10.0, 100.0, 500.0)  # of the landscape, beside the runs' own


def report(
    runs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    teacher: str | float | Path | None = None,
    baseline: str | None = None,
    labels: str | Sequence[str] | None = None,
    style: str = "screen",
    say: Callable[[str], None] = print,
    base: str | float | Path | None = None,
) -> Path:
    """Makes the report of run folders, finished or not; returns its folder: index.html, report.json and the pictures.

    Runs that differ by seed alone are one curve. `output`: the folder, if not RUN/report for one run or a name under
    reports/ for several; an earlier one is replaced. `teacher`: the folder of the teacher's evaluation, or its accuracy
    in percent; `base`: the same of the student before training, instead of what the runs' own evaluations say.
    `baseline`: the name or folder of the run, or the label of the curve, that differences are taken from; the first
    run's, if not given. `labels`: names of the curves, in the order of the page. `style`: "screen" or "paper". Raises
    UserError for what the user can mend.
    """
    looks = checked(ReportConfig, {"style": style}).style
    found = read_runs([runs] if isinstance(runs, str | Path) else runs)
    groups = group_runs(found, labels.split(",") if isinstance(labels, str) else labels)
    against = _baseline(groups, found, baseline)
    reference, before = (
        None if given is None else read_reference(str(given), found, role)
        for given, role in ((teacher, "teacher"), (base, "base"))
    )
    folder = _folder(found, output)
    numbers = gather(groups, against, reference, before)
    first, then = answer(groups, against, before), sentences(groups, reference, before)
    numbers |= {"title": title(groups), "answer": [*first, *then]}
    shown = []
    with whole_folder(folder) as beside, matplotlib.rc_context(LOOKS[looks].rc):
        for drawn in pictures(groups, numbers, reference, looks, before):
            svg = rendered(drawn.figure, "svg")
            if drawn.file:
                (beside / f"{drawn.file}.svg").write_bytes(svg)
                for kind in ("png", "pdf"):
                    (beside / f"{drawn.file}.{kind}").write_bytes(rendered(drawn.figure, kind))
            if drawn.on_page:
                shown.append((drawn, svg))
        write_text(beside / "index.html", page(groups, numbers, first, then, shown))
        write_json(beside / "report.json", numbers)
    for sentence in [*first, *then]:
        say(sentence)
    say(f"files   {folder}: index.html  report.json  and the pictures as PNG, SVG and PDF")
    return folder


def gather(
    groups: Sequence[Group], baseline: Group, teacher: Reference | None, base: Reference | None = None
) -> dict[str, Any]:
    """Returns the numbers of the page as JSON: the table, and those under every figure, by the setting's label."""
    firsts = {g.label: line for g in groups if (line := pooled(g.runs, min))}
    lasts = {g.label: line for g in groups if (line := pooled(g.runs, max))}
    configs = [group.config for group in groups]
    alphas = sorted({*ALPHAS, *(c.alpha for c in configs if "alpha" not in c.ignored)})
    rewards = ("reward/min", "reward/p05", "reward/p95", "reward/max")
    runs = [(run, group.label) for group in groups for run in group.runs]
    end, norms = end_of(groups), median_norms(groups)
    return {
        "groups": [{"label": g.label, "runs": [run.name for run in g.runs], "seeds": g.seeds} for g in groups],
        "runs": [
            {"name": r.name, "folder": str(r.path), "group": label, "config": r.config.model_dump()}
            for r, label in runs
        ],
        "baseline": baseline.label,
        "teacher": teacher and {"accuracy": teacher.accuracy, "source": teacher.source},
        "base": base and {"accuracy": base.accuracy, "source": base.source},
        "table": table(groups, baseline, teacher),
        "settings": differing_settings(configs),
        "end": end and asdict(end),
        "by_alpha": {"end": by_alpha(groups, end.values if end else {}), "gradient": by_alpha(groups, norms)},
        "accuracy": {group.label: accuracy(group.runs) for group in groups},
        "kl": {group.label: divergence(group.runs) for group in groups},
        "steps_to": steps_to(groups, baseline),
        "reward": {group.label: by_step(group.runs, *rewards) for group in groups},
        "gradient": {group.label: by_step(group.runs, "optim/grad_norm") for group in groups},
        "density": {label: density(line) for label, line in firsts.items()},
        "density_at_the_end": {label: density(line) for label, line in lasts.items()},
        "positions": {label: positions(line) for label, line in firsts.items()},
        "landscape": landscape(alphas) | {"runs": sorted({config.reward_label for config in configs})},
        "by_step": {key: {group.label: by_step(group.runs, key) for group in groups} for key in HEALTH},
        "seconds": {group.label: phases(group.runs) for group in groups},
    }


def _baseline(groups: Sequence[Group], runs: Sequence[Run], asked: str | None) -> Group:
    for group in groups:
        for run in group.runs:
            if run is runs[0] if asked is None else asked == run.name or Path(asked).resolve() == run.path.resolve():
                return group
    for group in groups:
        if asked == group.label:
            return group
    names = ", ".join([*(run.name for run in runs), *(group.label for group in groups)])
    raise UserError(f"baseline: {asked} is none of the runs; type one of {names}")


def _folder(runs: Sequence[Run], out: str | Path | None) -> Path:
    """The folder to write, which may hold an earlier report and nothing else."""
    first, *others = (run.name.replace("/", "_") for run in runs)
    name = "+".join([first, *others])
    name = name if len(name) <= 100 else f"{first}+{len(others)}-more"
    folder = Path(out) if out is not None else Path("reports") / name if others else runs[0].path / "report"
    check_writable(folder, "--output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").is_file():
        raise UserError(f"{folder} holds other things than a report, which never replaces them; type another --output")
    return folder
