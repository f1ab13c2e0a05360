"""Whole optimizer steps: rollouts, the teacher's scores, the student's update; seconds and peak memory by phase.

Random weights never stop by themselves, so every completion has its full length: the worst case of the recipe.
"""

import time

import torch
from shapes import SHAPES, device, make_student, make_teacher, model_config, prompts, sampling, settings

from poweropd_lite.base.config_files import changed
from poweropd_lite.method import update
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.method.update import Objective
from poweropd_lite.models.loading import final_hidden
from poweropd_lite.models.shape import served_run
from poweropd_lite.plan.memory import plan_memory
from poweropd_lite.plan.trace import Traces
from poweropd_lite.run.metrics import describe
from poweropd_lite.run.session import reward_settings

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


def measure(
    student_name: str,
    teacher_name: str,
    batch: int,
    new: int,
    *,
    full: bool,
    method: str,
    engine: str,
    repeats: int,
    tiny: bool,
) -> dict:
    """Returns the figures of the last of `repeats` steps after a warm-up.

    `method` is a reward, or "plain": power on full logits.
    """
    reward = {"plain": "power"}.get(method, method)
    config = settings(
        full_finetune=full, reward=reward, batch_size=batch, max_new_tokens=new, max_prompt_tokens=128, lr=1e-6
    )
    dtype = torch.bfloat16
    student = make_student(student_name, config, dtype)
    sampler, folder = make_engine(engine, student, config)
    teacher, bits = make_teacher(teacher_name, dtype)
    optimizer = torch.optim.AdamW(list(student.trainable().values()), lr=config.learning_rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device().type, enabled=False)
    shape = SHAPES[student_name]
    asked, plain_sampling = prompts(batch, 128 if not tiny else 12, shape.vocabulary), sampling(shape)
    resident = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0
    for repeat in range(repeats + 1):
        phases, whole = Phases(), time.perf_counter()
        sampler.sync()
        rollouts = sampler.sample(asked, Draws(0, 0, repeat, tuple(range(batch))), plain_sampling, new)
        sampler.release()
        phases.end("rollout")
        if method == "plain":
            plain_step(student, teacher, optimizer, rollouts, phases)
            metrics = {}
        else:
            metrics = ours(student, teacher, optimizer, scaler, rollouts, plain_sampling, config, phases)
        seconds = time.perf_counter() - whole
    sampler.close()
    if folder is not None:
        folder.cleanup()
    tokens = sum(len(r.completion_ids) for r in rollouts)
    read = sum(map(len, rollouts))
    weights, head = body_weights(student_name), shape.vocabulary * shape.hidden
    teacher_flops = 2 * (
        body_weights(teacher_name) * read + SHAPES[teacher_name].vocabulary * SHAPES[teacher_name].hidden * tokens
    )
    again = 1 if config.gradient_checkpointing else 0
    passes = (3 if full else 2) + again  # forward, gradient of activations, of weights; and the forward again
    head_passes = (
        4 if full else 2
    )  # a trained head's chunks are made again in the backward pass, a frozen one's are not
    student_flops = 2 * (passes * weights * read + head_passes * head * tokens)
    return {
        "student": student_name,
        "teacher": f"{teacher_name}, {bits} bits",
        "trains": "every weight" if full else f"LoRA {config.lora_rank}",
        "method": method,
        "engine": engine,
        "batch": batch,
        "new_tokens": new,
        "seconds": seconds,
        "seconds_by_phase": phases.seconds,
        "resident_gib": resident,
        "peak_gib_by_phase": phases.peak_gib,
        "peak_gib": max(phases.peak_gib.values(), default=0.0),
        "planned_gib_by_phase": planned_gib(student_name, teacher_name, config, dtype, engine, bits),
        "tokens_per_second": tokens / seconds,
        "rollout_tokens_per_second": tokens / phases.seconds["rollout"],
        "teacher_tflops": teacher_flops / phases.seconds["teacher"] / 1e12,
        "student_tflops": student_flops / phases.seconds["student"] / 1e12,
        # every token of the batch reads the weights, the head and half of the longest cache
        "rollout_gb_per_second": new * (weights + head + batch * (read / batch / 2) * cache_width(student_name)) * 2
        / phases.seconds["rollout"] / 1e9,
        "loss": metrics.get("loss"),
    }  # fmt: skip


def planned_gib(student: str, teacher: str, config, dtype: torch.dtype, engine: str, bits: int) -> dict[str, float]:
    """Returns what `python -m poweropd_lite.plan` would say of the phases that are measured here."""
    config = changed(config, teacher_bits=bits)
    traces = Traces(model_config(student), model_config(teacher), dtype)
    plan = plan_memory(config, traces, device().type == "cuda", "vllm" if engine == "vllm" else "loop")
    names = {"rollout": "rollout", "teacher": "score", "student": "update", "optimizer": "optimizer"}
    return {name: plan.total(phase) / GIB for name, phase in names.items()}


def make_engine(name: str, student, config):
    """Returns the engine, and the temporary folder it reads the base from (vLLM)."""
    if name == "vllm":
        import tempfile

        from poweropd_lite.engines.vllm import VllmEngine

        folder = tempfile.TemporaryDirectory()
        student.model.get_base_model().save_pretrained(folder.name)
        return VllmEngine(student, served_run(changed(config, student=folder.name)), frozenset({7})), folder
    from poweropd_lite.engines.loop import LoopEngine

    engine = LoopEngine(student, frozenset({7}), print)
    if name == "eager":
        engine.graphs = False
    return engine, None


def ours(student, teacher, optimizer, scaler, rollouts, plain_sampling, config, phases: Phases) -> dict[str, float]:
    """A step of the product; its phases end where update.py waits for the card."""
    names, standing = iter(("teacher", "student", "optimizer")), update._finish
    update._finish = lambda where: phases.end(next(names))
    try:
        stops = Stops(config.stop_mode, 7)
        objective = Objective(config.reward, reward_settings(config), plain_sampling, config.score, stops)
        gradient = update.accumulate(student, teacher, rollouts, objective, config.token_budget, scaler)
        metrics = update.take_step(student, optimizer, gradient, config.max_grad_norm, scaler)
        return metrics | describe(gradient.tokens, objective, rollouts)
    finally:
        update._finish = standing


def plain_step(student, teacher, optimizer, rollouts: list[Rollout], phases: Phases) -> None:
    """The same step on float32 logits of the whole batch, as such code is usually written."""
    width = max(map(len, rollouts))
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    mask = torch.zeros(len(rollouts), width - 1, dtype=torch.bool)
    for i, r in enumerate(rollouts):
        ids[i, : len(r)] = torch.tensor(r.prompt_ids + r.completion_ids)
        mask[i, len(r.prompt_ids) - 1 : len(r) - 1] = True
    ids, mask = ids.to(device()), mask.to(device())

    def logprobs(hidden, head):
        logits = (hidden[:, :-1] @ head.to(hidden.dtype).T).float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)

    with torch.no_grad():
        log_p = logprobs(teacher.hidden(ids), teacher.head)
    phases.end("teacher")
    student.model.train()
    with student.compute():
        hidden = final_hidden(student.model, ids)
    log_q = logprobs(hidden, student.head)
    reward = (log_p.exp() - log_q.exp()).detach()
    (-(reward * log_q * mask).sum() / mask.sum()).backward()
    phases.end("student")
    torch.nn.utils.clip_grad_norm_(list(student.trainable().values()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    phases.end("optimizer")


def body_weights(name: str) -> int:
    """Returns the weights of all projections of a shape."""
    s = SHAPES[name]
    return s.layers * s.hidden * (2 * s.heads * s.head_size + 2 * s.kv_heads * s.head_size + 3 * s.mlp)


def cache_width(name: str) -> int:
    """Returns the numbers that one token adds to the KV cache."""
    s = SHAPES[name]
    return 2 * s.layers * s.kv_heads * s.head_size
