"""How the exported model came about: its training and its scores, from the run, or from the export that it was made of."""

import json
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.export.handover import REPORT
from poweropd_lite.export.job import Job


def base_name(model: str) -> str:
    """Returns what to call a model: its hub id or folder, or for a shipped one "bundled" rather than a folder of this machine."""
    return "bundled" if Path(model).parts[-3:-1] == ("poweropd_lite", "tiny") else model


def training(job: Job) -> dict[str, Any] | None:
    """Returns the lines of a card's training table; None if it is not known."""
    run = job.target.run
    if run is None:
        return _earlier(job).get("training")
    return {
        "base": base_name(job.target.base if job.target.adapter else run.student),
        "teacher": f"{run.teacher} ({run.teacher_bits}-bit)",
        "reward": run.reward + (f", alpha {run.alpha:g}" if run.reward == "power" else ""),
        "score": run.score,
        "data": f"{run.data}{f' ({run.data_split})' if '/' in run.data else ''}",
        "steps": f"{_summary(job).get('steps', 'unknown')} of {run.batch_size} rollouts, at most {run.max_new_tokens} new tokens each",
        "sampling": f"temperature {run.temperature:g}, top-k {run.top_k}, top-p {run.top_p:g}",
        "thinking": "on" if run.enable_thinking else "off (enable_thinking=False)",
        "learning rate": f"{run.learning_rate:g}, {run.lr_schedule}",
        "trained": _trained(run),
        "seed": run.seed,
    }


def _trained(run: Config) -> str:
    if run.full_finetune:
        return "every weight"
    bits = ", on a 4-bit base" if run.student_bits == 4 else ""
    return f"LoRA rank {run.lora_rank}, lora_alpha {run.lora_alpha:g}{bits}"


def evaluation(job: Job) -> str | None:
    """Returns the run's evaluations as Markdown, or what training itself found before and after; None if there are none."""
    folder, run = job.target.run_folder, job.target.run
    if folder is None or run is None:
        return _earlier(job).get("evaluation")
    tables = []
    rows = [(name, _summary(job).get(f"evaluation_{name}")) for name in ("before", "after")]
    if all(e for _, e in rows):
        k = run.eval_samples
        head = f"Training's own, {run.eval_problems} problems of {run.eval_benchmarks} at most, {k} samples each:\n\n"
        head += f"| | Avg@{k} | Pass@{k} | greedy | answers that stop |\n|---|---|---|---|---|\n"
        tables.append(
            head
            + "\n".join(
                f"| {name} training | {e['avg']:.1%} | {e['any']:.1%} | {e['greedy']:.1%} | {e['stop_share']:.1%} |"
                for name, e in rows
            )
        )
    tables += [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("eval/*/results.md"))]
    return "\n\n".join(tables).replace("\n# ", "\n### ") or None


def _summary(job: Job) -> dict[str, Any]:
    return _read(job.target.run_folder / "summary.json") if job.target.run_folder else {}


def _earlier(job: Job) -> dict[str, Any]:
    """export.json of the export that this one is made of."""
    return _read((job.target.adapter or Path(job.target.base)) / REPORT)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # a card without these lines is still true
        return {}
