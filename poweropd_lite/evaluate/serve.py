"""A model that was found, brought to where it can be sampled: by vLLM, which loads it itself, or the built-in loop."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.explained import explained
from poweropd_lite.engines.choose import Choice, vllm_unfit
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.engines.vllm import VllmServer
from poweropd_lite.evaluate.target import Target
from poweropd_lite.kernels import head
from poweropd_lite.method.rollout import Engine
from poweropd_lite.models.experts import fused_experts
from poweropd_lite.models.loading import (
    check_blocks,
    check_finite,
    check_head,
    load_causal_lm,
    model_path,
    nf4,
    stay_unpacked,
)
from poweropd_lite.models.saved import fill_adapter, largest_rank, names_a_whole, saved_weights
from poweropd_lite.models.shape import Served
from poweropd_lite.models.student import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Serving:
    """How a model is served."""

    engine: Choice
    device: torch.device
    dtype: torch.dtype
    bits: int  # of its weights: 16 is `dtype`, 4 is NF4
    longest: int  # tokens that a prompt and its answer may have
    lines: int  # answers at once
    kernels: str  # auto or off
    seed: int = 0
    remote_code: bool = False


def served_bits(target: Target, asked: int | None, asker: Config | None = None) -> int:
    """Returns the bits of the weights: as asked, or as the run trained, or 16; 4 where `asker`, another run, had them in 4."""
    default = 16
    if target.run is not None:
        default = target.run.student_bits
    elif asker is not None and target.kind == "model":
        pairs = ((asker.student, "student", asker.student_bits), (asker.teacher, "teacher", asker.teacher_bits))
        had = [bits for name, role, bits in pairs if _same(target.base, model_path(name, role))]
        default = 4 if 4 in had else 16
    return asked or default


def _same(one: str, other: str) -> bool:
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


def adapter_rank(target: Target) -> int | None:
    """Returns the largest rank of the model's adapter, or None for a whole model."""
    return None if target.adapter is None else largest_rank(target.adapter_config)


def vllm_unfit_for(target: Target, bits: int) -> str | None:
    """Returns why vLLM can't serve the model, or None."""
    if target.adapter is not None and names_a_whole(target.adapter):
        return (
            "the adapter's weights are named as in a whole checkpoint of text and images, and vLLM would pass them by"
        )
    if bits == 4:
        return "weights in 4 bits are evaluated by the built-in loop"
    saved = target.adapter_config
    targets = saved.get("target_modules") or []
    named = targets if isinstance(targets, list) else [targets]
    return vllm_unfit(
        adapter_rank(target) or 1, named, saved.get("modules_to_save") or [], bits, False, bool(saved.get("use_dora"))
    )


def serve_engine(target: Target, how: Serving, stop_ids: frozenset[int], say: Callable[[str], None]) -> Engine:
    """Brings up the chosen engine for a model that is sampled from and not trained."""
    head.switch(how.kernels)
    if how.engine.name == "vllm":
        names: list[str] = []
        if target.adapter is not None:
            names += saved_weights(target.adapter, target.adapter_config)  # which vLLM would serve whatever they are
        served = Served(target.base, how.longest, how.lines, how.lines, adapter_rank(target), how.remote_code, how.seed)
        return VllmServer(served, how.device, how.dtype, stop_ids, target.adapter, names)
    student = load_target(target, how.bits, how.device, how.dtype, how.remote_code)
    return LoopEngine(student, stop_ids, say, kernels=how.kernels)


def load_target(
    target: Target, bits: int, device: torch.device, dtype: torch.dtype, remote_code: bool = False
) -> Student:
    """Returns the model, ready to be sampled from.

    Raises UserError for an adapter that does not fit its base, for weights that are not finite, and for logits made in a way
    that is not known here.
    """
    options = {"quantization_config": nf4(dtype), "device_map": {"": device}} if bits == 4 else {}
    model: Any = load_causal_lm(target.base, target.role, dtype, remote_code, **options)
    if bits == 4:
        if fused := fused_experts(model):
            left = f"{len(fused)} fused parameters of experts, which 4 bits would leave as they are"
            raise UserError(f"{target.name} has {left}; type --bits 16")
        check_blocks(model, target.name)
        stay_unpacked(model)
    else:
        model = model.to(device)
    if target.adapter is not None:
        model = _with_saved_adapter(model, target, target.adapter)
    student = Student(model.eval(), device, dtype)
    with student.compute():
        check_finite(model, target.name)
        check_head(model, target.name)
    return student


def _with_saved_adapter(base: "PreTrainedModel", target: Target, adapter: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    weights, folder = saved_weights(adapter, target.adapter_config, str(base.device)), str(adapter)
    with explained(
        f"the adapter in {folder} does not fit {target.base}",
        folder,
        "type --base with the model that it was trained on",
    ):
        lora = LoraConfig.from_pretrained(folder)
        lora.base_model_name_or_path = base.name_or_path  # checked already; PEFT warns of another folder
        model: Any = get_peft_model(base, lora)
    fill_adapter(model, adapter, weights, target.base, "--base")
    return model
