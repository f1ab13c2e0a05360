"""What `python -m poweropd_lite.plan` foresees of the steps that were measured: it needs no card, so no card waits for it."""

import json
from pathlib import Path

import torch
from parts import PARTS, Step
from shapes import model_config
from steps import GIB, config_of

from poweropd_lite.base.config_files import changed
from poweropd_lite.plan.memory import plan_memory
from poweropd_lite.plan.trace import Traces

NAMES = {"rollout": "rollout", "teacher": "score", "student": "update", "optimizer": "optimizer"}


def add(out: Path) -> None:
    """Writes `planned_gib_by_phase` into the JSON of every step of a folder."""
    for part in PARTS:
        file = out / f"{part.name}.json"
        figures = json.loads(file.read_text()) if part.step and file.exists() else {}
        if "step" in figures:
            step = Step(**figures["step"])
            figures["planned_gib_by_phase"] = planned_gib(step, figures["new_tokens"], figures["device"] != "CPU")
            file.write_text(json.dumps(figures, indent=1))


def planned_gib(step: Step, new: int, cuda: bool) -> dict[str, float]:
    """Returns the planned GiB of the phases of a step."""
    config = changed(config_of(step, new), teacher_bits=step.teacher_bits)
    traces = Traces(model_config(step.student), model_config(step.teacher), getattr(torch, step.dtype))
    plan = plan_memory(config, traces, cuda, "vllm" if step.engine == "vllm" else "loop")
    return {name: plan.total(phase) / GIB for name, phase in NAMES.items()}
