"""The model that learns: base weights, a LoRA adapter or every weight, loaded by PEFT or by Unsloth.

Both loaders give the same thing: a model whose trained parameters have PEFT's names and are float32, whose base is frozen,
and whose body makes the hidden states that logprobs.py takes. An adapter trained with one opens with the other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from poweropd_lite.base.config import Config
from poweropd_lite.kernels.products import Head
from poweropd_lite.models.adapter import uncast_inputs, with_adapter
from poweropd_lite.models.compiled import CompiledLayers
from poweropd_lite.models.loading import (
    check_blocks,
    check_head,
    final_hidden,
    head_of,
    load_causal_lm,
    model_body,
    nf4,
    stay_unpacked,
)  # fmt: skip
from poweropd_lite.models.saved import fill_adapter, saved_settings, saved_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass
class Student:
    """A loaded student. `dtype` is what it computes in; trained weights are float32 whatever that is."""

    model: "PreTrainedModel | PeftModel"
    device: torch.device
    dtype: torch.dtype
    loader: str = "peft"  # or "unsloth"
    compiled: CompiledLayers | None = None  # set by `compile`

    def __post_init__(self) -> None:
        if self._half and self.loader == "peft":  # whose every forward is in `compute`
            uncast_inputs(self.model)

    @property
    def _half(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)

    def compile(self, say: Callable[[str], None]) -> None:
        """Has the decoder layers compiled at their first use, which `say` hears of."""
        self.compiled = CompiledLayers(self.model, "student", True, say)

    @property
    def head(self) -> Head:
        """What makes logits of its hidden states."""
        return head_of(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether it learns an adapter, beside a base that stays as it is."""
        return hasattr(self.model, "peft_config")

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def compute(self) -> AbstractContextManager:
        """The autocast context of every forward."""
        return torch.autocast(self.device.type, self.dtype if self._half else None, enabled=self._half)

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T]."""
        if not model_body(self.model).training:  # (to ask is cheap, and to set goes through some thousand modules)
            self.model.train()  # transformers recomputes activations (gradient checkpointing) in this mode only
        if self.compiled is not None:
            self.compiled.make(ids.shape[0], self._hidden)
        return self._hidden(ids)

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives `hidden` of each of some ids [B, T], in order, one after the other."""
        return map(self.hidden, several)

    def _hidden(self, ids: Tensor) -> Tensor:
        with self.compute():
            # With float32 master weights the residual stream is float32; the head's product is of `dtype`, as any other.
            return final_hidden(self.model, ids).to(self.dtype)

    def without_adapter(self) -> AbstractContextManager:
        """The base alone, inside the block; for a student that has an adapter."""
        model: Any = self.model
        return model.disable_adapter()


def load_student(
    config: Config, device: torch.device, dtype: torch.dtype, loader: str = "peft", fast_inference: bool = False
) -> Student:
    """Returns the student of a config on `device`, every dropout off, seeded by `config.seed`.

    With LoRA the base keeps `dtype` (or is NF4, for student_bits 4) and is frozen; adapter and `modules_to_save` are
    float32: new ones, or those in the folder `adapter`. With full fine-tuning every weight is float32 and computed in
    `dtype`. `loader` is "peft" or "unsloth"; `fast_inference` (Unsloth on CUDA) brings up vLLM on the same base weights.
    Raises UserError for target modules that the model does not have, and for an adapter of another base.
    """
    if loader == "unsloth":
        from poweropd_lite.models.unsloth import load_unsloth

        model = load_unsloth(config, device, dtype, fast_inference)
    else:
        model = _load_peft(config, device, dtype)
    if config.adapter is not None:
        adapted, path = cast("PeftModel", model), Path(config.adapter)
        weights = saved_weights(path, saved_settings(path), str(device))
        fill_adapter(adapted, path, weights, config.student, "--student")
    half = config.adapter is not None and dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(device.type, dtype if half else None, enabled=half):  # its modules trained whole are float32
        check_head(model, config.student)
    if config.student_bits == 4:
        # Packed by a forward without gradient, a 4-bit layer on the CPU would give wrong gradients afterwards.
        stay_unpacked(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return Student(model, device, dtype, loader)


def _load_peft(config: Config, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel | PeftModel":
    nf4_here = {"quantization_config": nf4(dtype), "device_map": {"": device}} if config.student_bits == 4 else {}
    kept = torch.float32 if config.full_finetune else dtype
    base: Any = load_causal_lm(config.student, "student", kept, config.trust_remote_code, **nf4_here)
    if nf4_here:
        check_blocks(base, config.student)
        stay_unpacked(base)
    else:
        base.to(device)
    model = base.requires_grad_(True) if config.full_finetune else with_adapter(base, config)
    if config.recomputes:
        recompute(model)
    return model


def recompute(model: Any) -> None:
    """Has each decoder layer's activations made again in the backward pass (gradient checkpointing).

    The state of random numbers, which no layer reads, need not be put back, nor what is made again be compared.
    """
    model.gradient_checkpointing_enable(
        {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    )
