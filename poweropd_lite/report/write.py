"""The report of some runs: everything read and computed first, then one folder, whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import whole_folder, write_json, write_text
from poweropd_lite.method.reward import REWARDS
from poweropd_lite.report.drawing import rendered
from poweropd_lite.report.page import page
from poweropd_lite.report.pictures import HEALTH, pictures
from poweropd_lite.report.read import Reference, Run, read_runs, read_teacher
from poweropd_lite.report.series import accuracy, by_step, density, landscape, phases, positions, steps_to
from poweropd_lite.report.table import differing_settings, table

ALPHAS = (0.1, 1.0, 10.0, 100.0, 500.0)  # of the landscape, beside the runs' own


def report(
    runs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    teacher: str | float | Path | None = None,
    baseline: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Makes the report of run folders, finished or not; returns its folder: index.html, report.json, PNGs and SVGs.

    `output`: the folder, if not RUN/report for one run or a name under reports/ for several; an earlier one is replaced.
    `teacher`: the folder of the teacher's evaluation, or its accuracy in percent. `baseline`: the name or folder of the
    run that differences are taken from; the first, if not given. Raises UserError for what the user can mend.
    """
    found = read_runs([runs] if isinstance(runs, str | Path) else runs)
    base = _baseline(found, baseline)
    reference = None if teacher is None else read_teacher(str(teacher), found)
    folder = _folder(found, output)
    numbers = gather(found, base, reference)
    summary, shown = sentences(found, reference), []
    with whole_folder(folder) as beside:
        for drawn in pictures(found, numbers, reference):
            svg = rendered(drawn.figure, "svg")
            if drawn.file:
                (beside / f"{drawn.file}.svg").write_bytes(svg)
                (beside / f"{drawn.file}.png").write_bytes(rendered(drawn.figure, "png"))
            if drawn.on_page:
                shown.append((drawn, svg))
        write_text(beside / "index.html", page(found, numbers, summary, shown))
        write_json(beside / "report.json", numbers)
    for sentence in summary:
        say(sentence)
    say(f"files   {folder}: index.html  report.json  and the pictures as PNG and SVG")
    return folder


def gather(runs: Sequence[Run], baseline: Run, teacher: Reference | None) -> dict[str, Any]:
    """Returns the numbers of the page as JSON: the table, and those under every figure, by the name of the run."""
    kept = [run for run in runs if run.tokens]
    alphas = sorted({*ALPHAS, *(run.config.alpha for run in runs if "alpha" in REWARDS[run.config.reward].settings)})
    rewards = ("reward/min", "reward/p05", "reward/p95", "reward/max")
    about = [(run, run.config.reward_label, run.config.model_dump()) for run in runs]
    return {
        "runs": [{"name": r.name, "folder": str(r.path), "reward": label, "config": c} for r, label, c in about],
        "baseline": baseline.name,
        "teacher": teacher and {"accuracy": teacher.accuracy, "source": teacher.source},
        "table": table(runs, baseline, teacher),
        "settings": differing_settings(runs),
        "accuracy": {run.name: accuracy(run) for run in runs},
        "steps_to": steps_to(runs, baseline),
        "reward": {run.name: by_step(run, *rewards) for run in runs},
        "gradient": {run.name: by_step(run, "optim/grad_norm") for run in runs},
        "density": {run.name: density(run.tokens[0]) for run in kept},
        "density_at_the_end": {run.name: density(run.tokens[-1]) for run in kept},
        "positions": {run.name: positions(run.tokens[0]) for run in kept},
        "landscape": landscape(alphas),
        "by_step": {key: {run.name: by_step(run, key) for run in runs} for key in HEALTH},
        "seconds": {run.name: phases(run) for run in runs},
    }


def sentences(runs: Sequence[Run], teacher: Reference | None) -> list[str]:
    """Returns what came out of each run, in a sentence."""
    out = []
    for run in runs:
        found, k, taken = accuracy(run), run.config.eval_samples, run.steps[-1]["step"] if run.steps else 0
        steps, avg = found["step"], [f"{avg:.1%}" for avg in found["avg"]]
        text = f"{run.name} ({run.config.reward_label}), {taken} of {run.config.steps} steps: "
        if len(steps) > 1:
            at = f" (step {steps[0]} -> {steps[-1]})" if steps[-1] != taken else ""
            text += f"Avg@{k} {avg[0]} -> {avg[-1]}{at}"
            text += f", {found['avg'][-1] / teacher.accuracy:.1%} of the teacher's" if teacher else ""
        elif steps:
            text += f"Avg@{k} {avg[0]} at step {steps[0]}"
        elif run.scored:
            parts = (f"Avg@{n} {of:.1%} on {name} at step {step}" for name, (n, of, step) in run.scored.items())
            text += f"{', '.join(parts)} by evaluate"
        else:
            text += "not evaluated"
        out.append(text + ("" if run.tokens else "; it kept no rewards by token (made by an earlier version)") + ".")
    scored = [run for run in runs if accuracy(run)["step"]]
    if differing := [name for name in differing_settings(scored) if name in marked("scores")]:
        out.append(f"Evaluated differently ({', '.join(differing)}): the accuracies of these runs do not compare.")
    if teacher is not None:
        out.append(f"Teacher: {teacher.accuracy:.1%}, {teacher.source}.")
    return out


def _baseline(runs: Sequence[Run], asked: str | None) -> Run:
    if asked is None:
        return runs[0]
    for run in runs:
        if asked == run.name or Path(asked).resolve() == run.path.resolve():
            return run
    raise UserError(f"baseline: {asked} is none of the runs; type one of {', '.join(run.name for run in runs)}")


def _folder(runs: Sequence[Run], out: str | Path | None) -> Path:
    """The folder to write, which may hold an earlier report and nothing else."""
    first, *others = (run.name.replace("/", "_") for run in runs)
    name = "+".join([first, *others])
    name = name if len(name) <= 100 else f"{first}+{len(others)}-more"
    folder = Path(out) if out is not None else Path("reports") / name if others else runs[0].path / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder for a report; type --output with the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").is_file():
        raise UserError(f"{folder} holds other things than a report, which never replaces them; type another --output")
    return folder
