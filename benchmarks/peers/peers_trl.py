"""TRL's trainers, run as they come: `train()`, of which a callback takes the time of every optimizer step.

Where a step's rollouts are given, they are handed in where the trainer would sample: DistillationTrainer's `_generate`
returns them; GKDTrainer takes them as its data's completions (`lmbda` 0). No evaluation, no checkpoint, no log.
"""

import os
import tempfile
from collections.abc import Callable

import torch
from cases import CLIP, LEARNING_RATE, Case, gradient_of, rollouts_of
from shapes import device

from poweropd_lite.models.loading import load_tokenizer
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
NO_TEXT = "no text here: its ids are handed in"


def run(
    name: str, case: Case, student: Student, teacher: Teacher, steps: int, start: Callable, end: Callable,
    clip: float = CLIP, keep: bool = False,
) -> tuple[float, torch.Tensor | None]:  # fmt: skip
    """Trains `steps` steps with the trainer `name`, "trl" or "gkd", calling start() and end() around each.

    Returns the last step's loss and, with `keep`, its gradient.
    """
    from transformers import TrainerCallback

    seen: dict = {"gradient": None}

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            start()

        def on_pre_optimizer_step(self, *args, **kwargs):
            seen["gradient"] = gradient_of(student) if keep else None

        def on_step_end(self, *args, **kwargs):
            end()

    with tempfile.TemporaryDirectory() as folder:
        trainer = {"trl": _distillation, "gkd": _gkd}[name](case, student, teacher, steps, clip, folder, Watch())
        done = trainer.train()
    return done.training_loss, seen["gradient"]


def _arguments(case: Case, steps: int, clip: float, folder: str) -> dict:
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.lines // case.micro,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": clip,
        "gradient_checkpointing": case.checkpointing,
        "bf16": case.dtype == torch.bfloat16,
        "use_cpu": device().type == "cpu",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "temperature": 1.0,
        "beta": 1.0,  # reverse KL, as full_kl
        "seed": 0,
    }


def _tokenizer():
    tokenizer = load_tokenizer("bundled", "student")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _dataset(rows: list[dict], steps: int):
    from datasets import Dataset

    return Dataset.from_list(rows * steps)


def _distillation(case: Case, student: Student, teacher: Teacher, steps: int, clip: float, folder: str, watch):
    from trl import DistillationConfig, DistillationTrainer

    rows = rollouts_of(case)
    config = DistillationConfig(
        **_arguments(case, steps, clip, folder),
        max_completion_length=case.new,
        top_k=0,
        top_p=1.0,
        shuffle_dataset=False,
    )
    trainer = DistillationTrainer(
        student.model,
        teacher.model,
        args=config,
        train_dataset=_dataset([{"prompt": NO_TEXT}] * case.lines, steps),
        processing_class=_tokenizer(),
        callbacks=[watch],
    )
    prompts = [list(r.prompt_ids) for r in rows]
    if case.samples:
        trainer._tokenize_prompts = lambda texts: (prompts, None, {})
    else:
        trainer._generate = lambda texts: (prompts, [list(r.completion_ids) for r in rows], None, None, [])
    return trainer


def _gkd(case: Case, student: Student, teacher: Teacher, steps: int, clip: float, folder: str, watch):
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {
            "prompt": NO_TEXT,
            "input_ids": list(r.prompt_ids + r.completion_ids),
            "completion_mask": [0] * case.prompt + [1] * case.new,
        }
        for r in rollouts_of(case)
    ]
    config = GKDConfig(
        **_arguments(case, steps, clip, folder),
        max_new_tokens=case.new,
        max_length=case.prompt + case.new,
        lmbda=1.0 if case.samples else 0.0,
    )
    return GKDTrainer(
        student.model,
        teacher.model,
        args=config,
        train_dataset=_dataset(rows, steps),
        processing_class=_tokenizer(),
        callbacks=[watch],
    )
