"""How the exported model came about: its training and its scores, from the run, or from the export that it was made of."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.export.handover import REPORT

if TYPE_CHECKING:
    from poweropd_lite.base.config import Config
    from poweropd_lite.export.plan import Plan


def base_name(model: str) -> str:
    """Returns what to call a model: its hub id or folder, or for a shipped one "bundled" rather than a folder of this machine."""
    return "bundled" if Path(model).parts[-3:-1] == ("poweropd_lite", "tiny") else model


def training(plan: "Plan") -> dict[str, Any] | None:
    """Returns the lines of a card's training table; None if it is not known."""
    run = plan.target.run
    if run is None:
        return _earlier(plan).get("training")
    return {
        "base": base_name(plan.target.base if plan.target.adapter else run.student),
        "teacher": f"{run.teacher} ({run.teacher_bits}-bit)",
        "reward": run.reward + (f", alpha {run.alpha:g}" if run.reward == "power" else ""),
        "score": run.score,
        "data": f"{run.data}{f' ({run.data_split})' if '/' in run.data else ''}",
        "steps": f"{_summary(plan).get('steps', 'unknown')} of {run.batch_size} rollouts, at most {run.max_new_tokens} new tokens each",
        "sampling": f"temperature {run.temperature:g}, top-k {run.top_k}, top-p {run.top_p:g}",
        "thinking": "on" if run.enable_thinking else "off (enable_thinking=False)",
        "learning rate": f"{run.learning_rate:g}, {run.lr_schedule}",
        "trained": _trained(run),
        "seed": run.seed,
    }


def _trained(run: "Config") -> str:
    if run.full_finetune:
        return "every weight"
    bits = ", on a 4-bit base" if run.student_bits == 4 else ""
    return f"LoRA rank {run.lora_rank}, lora_alpha {run.lora_alpha:g}{bits}"


def evaluation(plan: "Plan") -> str | None:
    """Returns the run's evaluations as Markdown, or what training itself found before and after; None if there are none."""
    folder, run = plan.target.run_folder, plan.target.run
    if folder is None or run is None:
        return _earlier(plan).get("evaluation")
    tables = []
    rows = [(name, _summary(plan).get(f"evaluation_{name}")) for name in ("before", "after")]
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


def _summary(plan: "Plan") -> dict[str, Any]:
    return _read(plan.target.run_folder / "summary.json") if plan.target.run_folder else {}


def _earlier(plan: "Plan") -> dict[str, Any]:
    """export.json of the export that this one is made of."""
    return _read((plan.target.adapter or Path(plan.target.base)) / REPORT)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # a card without these lines is still true
        return {}
