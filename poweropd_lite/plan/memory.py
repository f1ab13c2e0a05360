"""What is alive in each phase of a run, in bytes: the weights by arithmetic, the rest traced (trace.py).

A phase's bytes are the most that tensors hold at once in it; the peak is the largest phase. A card needs more than that: the
CUDA context and what the allocator can't use (`MemoryPlan.needed`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.memory import machine_bytes, peak_gib
from poweropd_lite.base.teachers import SELF
from poweropd_lite.kernels import head
from poweropd_lite.kernels.packed import packs
from poweropd_lite.kernels.products import FUSED_ELEMENTS, LOGIT_ELEMENTS, row_chunks
from poweropd_lite.models.logits import logit_form
from poweropd_lite.models.shape import BESIDE_WEIGHTS, Shape, cache_bytes, served_run
from poweropd_lite.plan.trace import Traced, Traces, traces_of
from poweropd_lite.rewards.table import reads_rows, reward_of

GIB = 2**30
CUDA_CONTEXT = 600 * 2**20  # torch's kernels, cuBLAS and bitsandbytes on a card; assumed
LOADED_LATER = GIB // 10  # libraries of a training process on a CPU, after it was planned: 0.05 to 0.07 measured
VLLM_ASLEEP = GIB  # what a sleeping vLLM keeps: CUDA graphs and workspaces; assumed
FRAGMENTED = 0.05  # of what is not weights, which the allocator holds and can't use; assumed
EXPORT_ON_HOST = 1.24  # times the model, measured (docs/export.md)
WEIGHTS = ("student", "adapter", "optimizer", "teacher")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by phase and by what holds them."""

    phases: dict[str, dict[str, int]]
    cuda: bool
    runtime: int  # of the CUDA context, or of the process before anything is loaded
    student: Traced
    teacher: Shape
    host: int = 0  # of an offloaded teacher's layers, in the host's memory: what crosses the bus, once a step

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase of a training run that needs the most; export is a command of its own."""
        return max((phase for phase in self.phases if phase != "export"), key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of tensors at the peak of a run: what torch.cuda.max_memory_allocated would say."""
        return self.total(self.peak_phase)

    @property
    def needed(self) -> int:
        """Bytes that the machine must have: the peak, on a card what is lost between tensors, and the runtime."""
        if not self.cuda:
            return self.peak + self.runtime
        weights = sum(size for item, size in self.phases[self.peak_phase].items() if item in WEIGHTS)
        return round(self.peak + FRAGMENTED * (self.peak - weights) + self.runtime)


def plan_memory(
    config: Config, traces: Traces, cuda: bool, engine: str = "loop", shared: bool = False, runtime: int | None = None,
    fused: bool = True,
) -> MemoryPlan:  # fmt: skip
    """Returns what a run of `config` holds in each phase, for prompts and completions as long as the config allows.

    `engine` is "loop" or "vllm", which is `shared` when it samples from Unsloth's own copy of the base. `runtime` is what the
    process takes before anything is loaded, where that is known; `fused` whether the card runs the head's kernels.
    """
    lines, width = fullest_batch(config)
    own = None if reads_rows(config) else config.teacher_tokens_at_once
    dtype, teacher_dtype = traces.dtype, teacher_compute(config, traces.dtype)
    scored = fullest_batch(config, own)
    teacher, scoring = traces.teacher(config, teacher_dtype, *scored)
    student = traces.student(config, teacher.head, lines, width, cuda and compiles(config, fused))

    base_bits = 32 if config.full_finetune else 4 if config.student_bits == 4 else 8 * dtype.itemsize
    teacher_bits = 8 * teacher_dtype.itemsize if config.teacher_bits >= 16 else config.teacher_bits
    state = (2 + 8 / 256 if config.optimizer == "adamw8bit" else 8) * student.trained
    resident = {
        "student": student.shape.weight_bytes(base_bits, dtype.itemsize),
        "adapter": 0 if config.full_finetune else 4 * student.trained,
        "optimizer": round(state),
        "teacher": teacher.weight_bytes(teacher_bits, teacher_dtype.itemsize) if config.loads_teacher else 0,
    }
    waiting = host = 0
    if config.teacher_offload and teacher.layer is not None:
        here, host = teacher.offloaded_bytes(teacher_bits, teacher_dtype.itemsize)
        resident["teacher"] = here if cuda else here + host
        others = config.batch_size * (config.max_prompt_tokens + config.max_new_tokens) / math.prod(scored) - 1
        scoring, waiting = traces.streamed(config, teacher_dtype, *scored)
        waiting = math.ceil(max(0.0, others) * waiting)
    rollout, evaluation, always = _engine_bytes(config, traces, student, engine, shared, cuda)
    resident["engine"] = always
    said = config.batch_size * config.max_new_tokens * teacher.head[1] * teacher_dtype.itemsize
    kept = {"teacher's hidden states": said} if reads_rows(config) else {}
    gradients = {"gradients": 4 * student.trained}
    copy = _head_copy(config, student, dtype) if cuda else {}
    base = _unpacked(config.student_bits, student.shape, dtype)
    capped = logit_form(student.shape.config)[1] is not None
    chunks = [
        _fused_chunk(config, shape, batch, bends) if cuda and fused else {}
        for shape, batch, bends in ((teacher, scored, False), (student.shape, (lines, width), capped))
    ]
    own = config.student_bits if config.teacher == SELF else config.teacher_bits
    unpacked = _unpacked(own, teacher, teacher_dtype)
    scores = {**kept, "other micro-batches": waiting, "activations": scoring, **chunks[0], **unpacked}
    phases = {
        "load": {**resident, "optimizer": 0, "quantising": _quantising(config, teacher, cuda)},
        "rollout": {**resident, **rollout, **copy, **(base if engine == "loop" else {})},
        "score": {**resident, **({} if config.served else scores)},
        "update": {**resident, **gradients, **kept, "activations": student.update, **chunks[1], **copy, **base},
        "optimizer": {**resident, **gradients},
        "evaluate": {**resident, **evaluation, **copy, **(base if engine == "loop" else {})},
        "export": _export(student, dtype, cuda),
    }
    if not config.evaluates:
        del phases["evaluate"]
    runtime = (CUDA_CONTEXT if cuda else 0) if runtime is None else runtime
    phases = {name: {item: size for item, size in items.items() if size} for name, items in phases.items()}
    return MemoryPlan(phases, cuda, runtime, student, teacher, host)


def fused_here(config: Config) -> bool:
    """Whether a run on this machine's card takes the head's kernels."""
    return config.kernels != "off" and torch.cuda.is_available() and head.fault(torch.cuda.current_device()) is None


def compiles(config: Config, fused: bool = True) -> bool:
    """Whether a card's student runs compiled layers, as far as a config says: auto is left to what is at hand (compiled.py)."""
    return config.compile == "on" or (config.compile == "auto" and fused and config.loader != "unsloth")


def fullest_batch(config: Config, budget: int | None = None) -> tuple[int, int]:
    """Returns the lines and the width of a micro-batch of `budget` tokens, or token_budget, that holds the most: shorter rollouts fill
    the budget that whole longest ones may leave a part of.
    """
    longest = config.max_prompt_tokens + config.max_new_tokens
    tokens = max(longest, min(budget or config.tokens_at_once, config.batch_size * longest))
    lines = -(-tokens // longest)
    return lines, tokens // lines


def teacher_compute(config: Config, dtype: torch.dtype) -> torch.dtype:
    """Returns what the teacher computes in, as load_teacher chooses it."""
    if config.teacher == SELF:
        return dtype
    if config.teacher_bits == 32:
        return torch.float32
    return torch.bfloat16 if config.teacher_bits == 16 and dtype == torch.float32 else dtype


def _engine_bytes(
    config: Config, traces: Traces, student: Traced, engine: str, shared: bool, cuda: bool
) -> tuple[dict[str, int], dict[str, int], int]:
    """Returns what the engine needs in rollouts, in evaluation, and all the time."""
    dtype = traces.dtype
    if engine == "vllm":
        cache = cache_bytes(student.shape, served_run(config), dtype)
        if shared:
            return {}, {}, cache + BESIDE_WEIGHTS
        weights = student.shape.weight_bytes(8 * dtype.itemsize)
        awake = {"keys and values": cache, "vLLM": weights + BESIDE_WEIGHTS - VLLM_ASLEEP}
        return awake, awake, VLLM_ASLEEP

    elements = math.prod(student.shape.head)
    packed = 4 * elements if not cuda and dtype == torch.float32 and packs(elements) else 0

    def decoding(lines: int, new: int) -> dict[str, int]:
        lines = min(lines, config.decode_batch_size or lines)
        cache = student.shape.cache_bytes(lines, config.max_prompt_tokens + new, dtype.itemsize)
        whole = traces.rollout(config, lines, config.max_prompt_tokens, new)
        return {"keys and values": cache, "decoding": max(0, whole - cache), "head's copy": packed}

    new = config.max_new_tokens
    return decoding(config.batch_size, new), decoding(config.eval_batch_size, config.eval_max_new_tokens or new), 0


def _quantising(config: Config, teacher: Shape, cuda: bool) -> int:
    """What loading the teacher takes beside its weights: the file's own pages on a CPU, a matrix at a time on a card."""
    on_host = cuda and config.teacher_offload  # where it is quantised, then
    if config.teacher_bits >= 16 or not config.loads_teacher or on_host:
        return 0
    return 4 * teacher.largest_unpacked if cuda else 2 * teacher.elements


def _unpacked(bits: int, shape: Shape, dtype: torch.dtype) -> dict[str, int]:
    """The one matrix that is multiplied just now, or the experts of a layer, unpacked."""
    return {"unpacked matrix": dtype.itemsize * shape.largest_unpacked} if bits < 16 else {}


def _head_copy(config: Config, student: Traced, dtype: torch.dtype) -> dict[str, int]:
    """On a card a head that is trained, and so float32, is multiplied in half precision, from a copy."""
    vocabulary, size = student.shape.head
    whole = {name.strip() for name in config.modules_to_save.split(",")}
    tied = getattr(student.shape.config, "tie_word_embeddings", False)
    trained = config.full_finetune or "lm_head" in whole or (tied and "embed_tokens" in whole)
    return {"head's copy": dtype.itemsize * vocabulary * size} if trained and dtype.itemsize < 4 else {}


def _fused_chunk(config: Config, shape: Shape, batch: tuple[int, int], bends: bool = False) -> dict[str, int]:
    """What a chunk of logits and its gradient (and for what `bends`, a soft cap's slopes) take more in the head's kernels than
    in the plain code that is traced.
    """
    if config.kernels == "off" or reward_of(config.reward).pay is None:
        return {}
    vocabulary, rows = shape.head[0], math.prod(batch)
    slope = 4 * bends
    most = 8 * LOGIT_ELEMENTS // (8 + slope), FUSED_ELEMENTS
    plain, fused = (row_chunks(rows, vocabulary, elements)[0].stop for elements in most)
    return {"kernels' chunk": vocabulary * max(0, (4 + 2 + slope) * fused - (4 + 4 + slope) * plain)}


def _export(student: Traced, dtype: torch.dtype, cuda: bool) -> dict[str, int]:
    model = student.shape.weight_bytes(8 * dtype.itemsize)
    if cuda:  # the live model is asked there; merging is done in the host's memory
        return {"student": model, "adapter": 4 * student.adapter}
    return {"student": model, "merging": round((EXPORT_ON_HOST - 1) * model)}


def planned_gib(
    config: Config, device: torch.device, dtype: torch.dtype, engine: str, shared: bool, say: Callable[[str], None]
) -> float | None:
    """Returns the planned peak of a run, GiB, as `recorder.peak_gib` measures it, having said it; None if it can't be planned.

    On a card that is what tensors hold; on a CPU what this process already takes is added. More than the machine has is
    said and not refused: prompts may be shorter than the config allows, and running out of memory halves what is in the way.
    """
    cuda = device.type == "cuda"
    try:
        found = plan_memory(config, traces_of(config, dtype), cuda, engine, shared, fused=fused_here(config))
    except Exception as error:  # a model's own code on tensors without memory: no reason not to train it
        say(f"memory not planned ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        return None
    if not cuda:
        found = replace(found, runtime=round(peak_gib() * GIB) + LOADED_LATER)
    planned = (found.peak + (0 if cuda else found.runtime)) / GIB
    has = torch.cuda.get_device_properties(device).total_memory if cuda else machine_bytes()
    if found.needed > has:
        much = f"{found.needed / GIB:.1f} GiB at the worst ({found.peak_phase}), and {has / GIB:.1f} are here"
        say(f"memory planned: {much}; python -m poweropd_lite.plan with the same settings finds what fits")
    else:
        say(f"memory planned: peak {planned:.2f} GiB at the worst ({found.peak_phase})")
    return planned
