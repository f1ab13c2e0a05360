"""Which kernels a decoded token and an update are made of: calls and microseconds of each, by torch's profiler."""

import torch
from parts import Step
from random_models import make_student, make_teacher
from shapes import SHAPES, device, prompts, sampling, settings
from steps import Phases, ours
from torch.profiler import ProfilerActivity, profile

from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.method.rollout import Draws

TOP = 40


def kernels(work) -> dict:
    """Returns calls and microseconds of what `work()` ran on the device, in all and by kernel, the longest first."""
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        work()
        if cuda:
            torch.cuda.synchronize()
    rows = []
    for event in seen.key_averages():
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # what the host did
        us = event.self_device_time_total if cuda else event.self_cpu_time_total
        if us > 0:
            rows.append({"name": event.key, "calls": event.count, "us": us})
    rows.sort(key=lambda row: -row["us"])
    totals = {"calls": sum(row["calls"] for row in rows), "us": sum(row["us"] for row in rows)}
    return {**totals, "different": len(rows), "top": rows[:TOP]}


def measure(tiny: bool) -> dict:
    """Returns the kernels of 96 decoded tokens (prompts of 128, CUDA graphs and all) and of one update."""
    names = ("tiny-student", "tiny-teacher") if tiny else (Step.student, Step.teacher)
    batch, length, few, new = (4, 12, 4, 16) if tiny else (Step.batch, 128, 96, 1024)
    config, dtype = settings(batch_size=batch, max_new_tokens=new, max_prompt_tokens=128, lr=1e-6), torch.bfloat16
    student, shape = make_student(names[0], config, dtype), SHAPES[names[0]]
    teacher, _ = make_teacher(names[1], dtype)
    engine, asked, drawn = (
        LoopEngine(student, frozenset({7}), print),
        prompts(batch, length, shape.vocabulary),
        sampling(shape),
    )

    def decode(count: int):
        engine.sync()
        rollouts = engine.sample(asked, Draws(0, 0, 0, tuple(range(batch))), drawn, count)
        engine.release()
        return rollouts

    decode(few)  # loads the kernels
    decoded = kernels(lambda: decode(few))
    decoded["calls_by_token"] = decoded["calls"] / few
    optimizer = torch.optim.AdamW(list(student.trainable().values()), lr=config.learning_rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device().type, enabled=False)
    rollouts = decode(new)

    def learn():
        ours(student, teacher, optimizer, scaler, rollouts, drawn, config, Phases())

    learn()
    return {"profiles": {f"decode, {few} tokens": decoded, "update": kernels(learn)}}
