"""A model that was found, brought to where it can be sampled: by vLLM, which loads it itself, or the built-in loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.engines.choose import Choice, vllm_unfit
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.engines.vllm import VllmServer
from poweropd_lite.evaluate.target import Target
from poweropd_lite.method.rollout import Engine
from poweropd_lite.models.loading import check_finite, load_causal_lm, nf4, stay_unpacked
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
    seed: int = 0
    remote_code: bool = False


def served_bits(target: Target, asked: int | None) -> int:
    """Returns the bits of the weights: as asked, or as the run trained, or 16."""
    return asked or (target.run.student_bits if target.run else 16)


def adapter_rank(target: Target) -> int | None:
    """Returns the largest rank of the model's adapter, or None for a whole model."""
    if target.adapter is None:
        return None
    saved = target.adapter_config
    return max([saved.get("r") or 8, *(saved.get("rank_pattern") or {}).values()])  # 8 is PEFT's own


def vllm_unfit_for(target: Target, bits: int) -> str | None:
    """Returns why vLLM can't serve the model, or None."""
    saved = target.adapter_config
    targets = saved.get("target_modules") or []
    named = targets if isinstance(targets, list) else [targets]
    return vllm_unfit(adapter_rank(target) or 1, named, saved.get("modules_to_save") or [], bits, shared=False)


def serve_engine(target: Target, how: Serving, stop_ids: frozenset[int], say: Callable[[str], None]) -> Engine:
    """Brings up the chosen engine for a model that is sampled from and not trained."""
    if how.engine.name == "vllm":
        if target.adapter is not None:
            _saved_weights(target)  # which vLLM would serve whatever they are
        served = Served(target.base, how.longest, how.lines, how.lines, adapter_rank(target), how.remote_code, how.seed)
        return VllmServer(served, how.device, how.dtype, stop_ids, target.adapter)
    return LoopEngine(load_target(target, how.bits, how.device, how.dtype, how.remote_code), stop_ids, say)


def load_target(
    target: Target, bits: int, device: torch.device, dtype: torch.dtype, remote_code: bool = False
) -> Student:
    """Returns the model, ready to be sampled from.

    Raises UserError for an adapter that does not fit its base, and for weights that are not finite.
    """
    options = {"quantization_config": nf4(dtype), "device_map": {"": device}} if bits == 4 else {}
    model: Any = load_causal_lm(target.base, "model", dtype, remote_code, **options)
    if bits == 4:
        stay_unpacked(model)
    else:
        model = model.to(device)
    if target.adapter is not None:
        model = _with_saved_adapter(model, target)
    student = Student(model.eval(), device, dtype)
    with student.compute():
        check_finite(model, target.name)
    return student


def _saved_weights(target: Target, device: str = "cpu") -> dict[str, torch.Tensor]:
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        weights = load_peft_weights(str(target.adapter), device=device)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"the weights in {target.adapter} can't be read: {error}; is the file whole?") from None
    scale = target.adapter_config.get("lora_alpha")
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken or (isinstance(scale, float) and not math.isfinite(scale)):
        which = f"{len(broken)} weights, for one {broken[0]}" if broken else f"lora_alpha {scale}"
        raise UserError(
            f"{target.adapter} holds numbers that are not finite ({which}): damaged, or its training went wrong"
        )
    return weights


def _with_saved_adapter(base: "PreTrainedModel", target: Target) -> Any:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    weights = _saved_weights(target, str(base.device))
    try:
        lora = LoraConfig.from_pretrained(str(target.adapter))
        lora.base_model_name_or_path = base.name_or_path  # checked already; PEFT warns of another folder
        model = get_peft_model(base, lora)
    except (ValueError, TypeError) as error:
        raise UserError(f"the adapter in {target.adapter} does not fit {target.base}: {error}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:  # before it is filled: it begins in the base's dtype
            parameter.data = parameter.data.float()
    # An adapter on the embedding may or may not bring the base's own beside it.
    expected, found = (
        {name: tuple(w.shape) for name, w in tensors.items() if ".base_layer." not in name}
        for tensors in (get_peft_model_state_dict(model), weights)
    )
    if odd := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        is_there, should_be = (shapes.get(odd[0], "absent") for shapes in (found, expected))
        one = f"for one, {odd[0]} is {is_there} and should be {should_be}"
        differ = f"{len(odd)} of {len(expected | found)} tensors differ ({one})"
        mend = "it was trained on another base model: type --base with that one"
        raise UserError(f"the adapter in {target.adapter} does not fit {target.base}: {differ}; {mend}")
    set_peft_model_state_dict(model, weights)
    return model
