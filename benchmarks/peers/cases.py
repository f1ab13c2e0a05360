"""What every method is given: shapes, models, rollouts and settings of a case, the same ones whoever works on them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))

import random_models
import shapes
from shapes import SHAPES, Shape, device

from poweropd_lite.method.rollout import Rollout
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher

ALPHA, LEARNING_RATE, CLIP = 1.0, 1e-6, 1.0  # the power reward's exponent, AdamW's rate, the largest gradient norm

SHAPES |= {
    "scoring-student": Shape(
        256, 2, 4, 2, 768, True, head_size=64
    ),  # Qwen3's vocabulary on a body that a CPU can train
    "scoring-teacher": Shape(384, 3, 6, 2, 1152, True, head_size=64),
    "whole-student": Shape(256, 4, 4, 2, 768, True, 32_000, 64),
    "whole-teacher": Shape(384, 6, 6, 2, 1152, True, 32_000, 64),
}


@dataclass(frozen=True)
class Case:
    """A step to be measured: `lines` rollouts of `prompt` + `new` tokens each, all of the new ones in the loss."""

    name: str
    student: str
    teacher: str
    lines: int
    prompt: int
    new: int
    samples: bool  # whether the rollouts are part of the step
    micro: int  # lines at a time of those who count in lines; ours has its token budget
    checkpointing: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "scoring": Case("scoring", "scoring-student", "scoring-teacher", 8, 8, 256, False, 8),
    "whole": Case("whole", "whole-student", "whole-teacher", 16, 16, 128, True, 16),
}
TINY = {
    "scoring": Case("scoring", "tiny-student", "tiny-teacher", 3, 4, 8, False, 3),
    "whole": Case("whole", "tiny-student", "tiny-teacher", 3, 4, 8, True, 3),
}
CARD = {
    "scoring": Case("scoring", "0.6b", "4b", 32, 128, 1024, False, 8, True, torch.bfloat16),
    "whole": Case("whole", "0.6b", "4b", 32, 128, 1024, True, 8, True, torch.bfloat16),
}


def case_of(work: str, tiny: bool, card: bool) -> Case:
    """Returns the case of a kind of work in the shapes of this run."""
    return (TINY if tiny else CARD if card else CASES)[work]


def config_of(case: Case, lora: bool, reward: str):
    """Returns our settings of a case."""
    longest = {"max_prompt_tokens": case.prompt, "max_new_tokens": case.new, "batch_size": case.lines}
    return shapes.settings(
        reward=reward,
        alpha=ALPHA,
        lr=LEARNING_RATE,
        full_finetune=not lora,
        gradient_checkpointing=case.checkpointing,
        **longest,
    )


def make_models(case: Case, lora: bool) -> tuple[Student, Teacher]:
    """Returns student and frozen teacher with random weights, the same at every call; the teacher is NF4 on a card."""
    student = random_models.make_student(case.student, config_of(case, lora, "power"), case.dtype)
    if case.dtype != torch.float32:
        return student, random_models.make_teacher(case.teacher, case.dtype)[0]
    return student, Teacher(random_models.make(case.teacher, case.dtype).requires_grad_(False).eval())


def rollouts_of(case: Case, vocabulary: int | None = None) -> list[Rollout]:
    """Returns random rollouts, the same at every call, none of which stopped by itself."""
    rows = shapes.prompts(case.lines, case.prompt + case.new, vocabulary or SHAPES[case.student].vocabulary)
    nothing = (0.0,) * case.new
    return [Rollout(row[: case.prompt], row[case.prompt :], nothing, "length") for row in rows]


def ids_of(rollouts: list[Rollout]) -> Tensor:
    """Returns rollouts of one length as ids [B, T]."""
    return torch.tensor([r.prompt_ids + r.completion_ids for r in rollouts], device=device())


def gradient_of(student: Student) -> Tensor:
    """Returns all of the student's gradient as one vector, float64."""
    return torch.cat([p.grad.double().flatten() for p in student.trainable().values()])
