"""What there is to measure, in the order of its worth, with the seconds each part needs: no torch is imported here.

Seconds are of an H100 (80 GB), with the libraries already imported: measured where a card has run the part, else estimated from
what it has run. A part on another card, or the first to compile something, takes longer.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One kind of optimizer step; the defaults are the recipe's. `method` is a reward, or plain: power on full logits."""

    student: str = "0.6b"
    teacher: str = "4b"
    batch: int = 32
    full: bool = False  # every weight, or LoRA
    method: str = "power"
    engine: str = "loop"  # eager is the loop without CUDA graphs
    loader: str = "peft"
    student_bits: int = 16
    teacher_bits: int = 4
    optimizer: str = "adamw"
    dtype: str = "bfloat16"
    streamed: bool = False  # half of the teacher's layers stand in the host's memory
    recomputed: bool = True  # gradient checkpointing
    budget: int = 36_864  # tokens of a micro-batch, of teacher and student: 32 x 1,152 at once
    compiled: bool = False  # the decoder layers; a minute and a half the first time on a machine
    kernels: bool = True


@dataclass(frozen=True)
class Part:
    """Something to measure: `measure(tiny)` of a module, or `steps.measure(step, tiny)`."""

    name: str
    seconds: int
    about: str
    module: str = "steps"
    step: Step | None = None
    needs: tuple[str, ...] = ()  # packages
    card: bool = False  # cannot run on a CPU, in small shapes neither

    def lacks(self) -> str:
        """Returns which package is missing, or nothing."""
        return ", ".join(name for name in self.needs if importlib.util.find_spec(name) is None)


def _step(name: str, seconds: int, about: str, needs: Sequence[str] = (), card: bool = False, **changes) -> Part:
    return Part(name, seconds, about, step=Step(**changes), needs=tuple(needs), card=card)


NF4 = ("bitsandbytes",)
PARTS = [
    Part("card", 12, "matrix products and copies at their best", "card"),
    Part("correct", 30, "log-probs, gradients, NF4 and the decoder against float32", "correct"),
    _step("lora-0.6b-4b-b32", 130, "phases of the recipe's step, compiled, activations recomputed", compiled=True),
    _step("lora-0.6b-4b-b32-kept", 50, "the same with activations kept, for 80 GB", compiled=True, recomputed=False),
    _step("lora-0.6b-4b-b32-plain", 40, "the same without compiling, kernels or large micro-batches", kernels=False, budget=8_192),
    Part("profile", 40, "kernels of 96 decoded tokens and of one update", "profiles"),
    Part("head", 20, "log-probs of 32,768 tokens: seconds and peak by chunk", "head"),
    Part("decode", 35, "ms a token at batch 32, with half of the lines ended, and at batch 8", "decoding"),
    Part("evaluate", 65, "tokens/s of 512 new tokens at batch 256 and 512", "evaluating"),
    _step("full-0.6b-4b-b32", 32, "every weight is trained", full=True),
    _step("full_kl-0.6b-4b-b8", 22, "whole distributions compared", method="full_kl", batch=8),
    _step("plain-0.6b-4b-b8", 22, "the same step on full logits, as it is usually written", method="plain", batch=8),
    _step("lora-1.7b-8b-b32", 50, "phases of the larger pair", student="1.7b", teacher="8b"),
    _step("lora-0.6b-4b-b8", 20, "batch 8", batch=8),
    _step("unsloth-vllm-0.6b-4b-b32", 240, "Unsloth with vLLM in one", ("unsloth", "vllm"), True, loader="unsloth", engine="vllm"),
    _step("qlora-0.6b-4b-b32", 40, "the student's base in NF4", NF4, student_bits=4),
    _step("adamw8bit-0.6b-4b-b8", 25, "AdamW's state in 8 bits, every weight", NF4, full=True, optimizer="adamw8bit", batch=8),
    _step("int8-0.6b-4bcut-b8", 35, "teacher in LLM.int8, 9 of its 36 layers", NF4, teacher="4b-cut", teacher_bits=8, batch=8),
    _step("streamed-0.6b-4bcut-b8", 35, "teacher streamed from the host, 9 of its 36 layers", teacher="4b-cut", teacher_bits=16, streamed=True, batch=8),
    _step("fp16-0.6b-4b-b8", 22, "float16 with a loss scale", dtype="float16", batch=8),
    Part("commands", 130, "train, train --resume, evaluate, audit and export on saved random models", "commands"),
    _step("vllm-0.6b-4b-b32", 200, "rollouts by vLLM", ("vllm",), engine="vllm"),
    Part("vllm-pieces", 240, "a token through vLLM without adapter, seeds, biases, log-probs", "vllm_pieces", needs=("vllm",)),
    Part("evaluate-vllm", 200, "the same through vLLM, at the command's own batch of 512", "evaluating_vllm", needs=("vllm",)),
    Part("peers", 300, "one step each of ours, TRL's (where installed), plain and lean, scoring and whole", "beside_peers"),
    _step("full-0.6b-4b-b8", 22, "every weight is trained, batch 8", full=True, batch=8),
    _step("lora-1.7b-8b-b8", 30, "the larger pair, batch 8", student="1.7b", teacher="8b", batch=8),
    _step("full-1.7b-8b-b8", 35, "every weight of the larger pair", student="1.7b", teacher="8b", full=True, batch=8),
    _step("unsloth-0.6b-4b-b32", 80, "loaded by Unsloth, rollouts by the loop", ("unsloth",), True, loader="unsloth"),
    _step("eager-0.6b-4b-b8", 60, "the loop without CUDA graphs", engine="eager", batch=8),
]  # fmt: skip
BY_NAME = {part.name: part for part in PARTS}


def next_part(queue: Sequence[Part], seconds: float) -> Part | None:
    """Returns the most telling part of `queue` that fits into `seconds`, or None."""
    return next((part for part in queue if part.seconds <= seconds), None)


def fitting(queue: Sequence[Part], seconds: float) -> list[Part]:
    """Returns the parts that would be run in `seconds`, if each takes what is said of it."""
    chosen = []
    for part in queue:
        if part.seconds <= seconds:
            chosen.append(part)
            seconds -= part.seconds
    return chosen
