"""Whole optimizer steps: rollouts, the teacher's scores, the student's update; seconds and peak memory by phase.

Random weights never stop by themselves, so every completion has its full length: the worst case of the recipe.
"""

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from parts import Step
from plain import plain_step
from random_models import student_of, teacher_of
from shapes import SHAPES, body_weights, cache_width, device, prompts, sampling, settings

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.kernels import head
from poweropd_lite.method import update
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.method.update import Objective
from poweropd_lite.models.shape import served_run
from poweropd_lite.models.student import Student
from poweropd_lite.run.metrics import describe, on_host
from poweropd_lite.run.session import _optimizer

GIB = 2**30


class Phases:
    """Seconds and peak GiB of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def end(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_gib[name] = torch.cuda.max_memory_allocated() / GIB
        self.seconds[name] = time.perf_counter() - self.started
        self.start()


def measure(step: Step, tiny: bool) -> dict:
    """Returns the figures of a step after a first one that warms up."""
    if tiny:
        step = dataclasses.replace(step, student="tiny-student", teacher="tiny-teacher", batch=min(step.batch, 4))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _measure(step, 16 if tiny else 1024, 12 if tiny else 128, folder, stack)


def config_of(step: Step, new: int) -> Config:
    """Returns the settings of a step with `new` tokens a completion."""
    return settings(
        full_finetune=step.full,
        reward={"plain": "power"}.get(step.method, step.method),
        batch_size=step.batch,
        max_new_tokens=new,
        max_prompt_tokens=128,
        lr=1e-6,
        student_bits=step.student_bits,
        optimizer=step.optimizer,
        dtype=step.dtype,
        gradient_checkpointing=step.recomputed,
        token_budget=step.budget,
        kernels="auto" if step.kernels else "off",
    )


def _measure(step: Step, new: int, asked_length: int, folder: Path, stack: contextlib.ExitStack) -> dict:
    config = config_of(step, new)
    began, dtype = time.perf_counter(), getattr(torch, step.dtype)
    student, config = student_of(step, config, dtype, folder)
    sampler = make_engine(step.engine, student, config, folder)
    sampler.release()  # (it ends with this process, after the figures are written)
    teacher, bits = teacher_of(step, dtype, folder, stack)
    head.switched_off = not step.kernels
    if step.compiled:
        student.compile(print)
        teacher.compile(print)
    optimizer = _optimizer(config, list(student.trainable().values()))
    scaler = torch.amp.GradScaler(device().type, init_scale=16.0, enabled=dtype == torch.float16)  # as in a run
    shape = SHAPES[step.student]
    asked, plain_sampling = prompts(step.batch, asked_length, shape.vocabulary), sampling(shape)
    resident = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0
    loaded, whole_seconds = time.perf_counter() - began, []
    for repeat in range(3):
        phases, whole = Phases(), time.perf_counter()
        sampler.sync()
        rollouts = sampler.sample(asked, Draws(0, 0, repeat, tuple(range(step.batch))), plain_sampling, new)
        sampler.release()
        phases.end("rollout")
        if step.method == "plain":
            metrics = plain_step(student, teacher, optimizer, rollouts, phases)
        else:
            metrics = ours(student, teacher, optimizer, scaler, rollouts, plain_sampling, config, phases)
        whole_seconds.append(time.perf_counter() - whole)
    return {
        "step": {**dataclasses.asdict(step), "teacher_bits": bits},
        "teacher": f"{step.teacher}, {bits} bits",
        "trains": "every weight" if step.full else f"LoRA {config.lora_rank}",
        "new_tokens": new,
        "seconds_to_load": loaded,
        "seconds": whole_seconds[-1],
        "seconds_of_first": whole_seconds[0],
        "seconds_to_compile": sum(m.compiled.seconds for m in (student, teacher) if m.compiled is not None),
        "seconds_by_phase": phases.seconds,
        "resident_gib": resident,
        "peak_gib_by_phase": phases.peak_gib,
        "peak_gib": max(phases.peak_gib.values(), default=0.0),
        "loss": metrics.get("loss"),
        "grad_norm": metrics.get("optim/grad_norm"),
        "skipped": metrics.get("optim/skipped"),
        "gap": metrics.get("gap"),
        **rates(step, config, rollouts, phases.seconds, whole_seconds[-1]),
    }


def rates(step: Step, config: Config, rollouts: list[Rollout], phase_seconds: dict, seconds: float) -> dict[str, float]:
    """Returns tokens, floating-point operations and bytes by second."""
    tokens, read = sum(len(r.completion_ids) for r in rollouts), sum(map(len, rollouts))
    shape, theirs = SHAPES[step.student], SHAPES[step.teacher]
    weights, matrix = body_weights(step.student), shape.vocabulary * shape.hidden
    teacher_flops = 2 * (body_weights(step.teacher) * read + theirs.vocabulary * theirs.hidden * tokens)
    again = 1 if config.recomputes else 0
    passes = (3 if step.full else 2) + again  # forward, gradient of activations, of weights; and the forward again
    student_flops = 2 * (passes * weights * read + (3 if step.full else 2) * matrix * tokens)
    # Every token of the batch reads the weights, the head and half of the longest cache.
    longest = max(len(r.completion_ids) for r in rollouts)
    moved = longest * (weights + matrix + read / 2 * cache_width(step.student)) * 2
    return {
        "tokens_per_second": tokens / seconds,
        "rollout_tokens_per_second": tokens / phase_seconds["rollout"],
        "teacher_tflops": teacher_flops / phase_seconds["teacher"] / 1e12,
        "student_tflops": student_flops / phase_seconds["student"] / 1e12,
        "rollout_gb_per_second": moved / phase_seconds["rollout"] / 1e9,
    }


def save_base(student: Student, folder: Path) -> str:
    """Saves the base under the names that it has without an adapter; returns the folder."""
    model = student.model.get_base_model()
    weights = {name.replace(".base_layer", ""): w for name, w in model.state_dict().items() if "lora_" not in name}
    model.save_pretrained(folder, state_dict=weights)
    return str(folder)


def make_engine(name: str, student: Student, config: Config, folder: Path):
    """Returns what samples; vLLM reads the base from a folder, where Unsloth has not brought it up."""
    if name == "vllm":
        from poweropd_lite.engines.vllm import VllmEngine

        if student.loader != "unsloth":
            config = changed(config, student=save_base(student, folder / "base"))
        return VllmEngine(student, served_run(config), frozenset({7}))
    engine = LoopEngine(student, frozenset({7}), print, kernels=config.kernels)
    if name == "eager":
        engine.graphs = False
    return engine


def ours(student, teacher, optimizer, scaler, rollouts, plain_sampling, config, phases: Phases) -> dict[str, float]:
    """A step of the product; its phases end where update.py waits for the card."""
    names, standing = iter(("teacher", "student", "optimizer")), update._finish
    update._finish = lambda where: phases.end(next(names))
    try:
        stops = Stops(config.stop_mode, 7)
        objective = Objective(config.reward, reward_settings(config), plain_sampling, config.score, stops)
        gradient = update.accumulate(student, teacher, rollouts, objective, config.tokens_at_once, scaler)
        metrics = update.take_step(student, optimizer, gradient, config.max_grad_norm, scaler)
        tokens = on_host(gradient.tokens)  # as a run does
        gap = (tokens.engine - tokens.log_q).abs().nanmean().item()  # of engine and trainer, nats
        return metrics | describe(tokens, objective, rollouts) | {"gap": gap}
    finally:
        update._finish = standing
