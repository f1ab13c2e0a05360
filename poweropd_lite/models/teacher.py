"""The frozen model that scores: 4-bit by default, no generation, no gradient."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poweropd_lite.models.compiled import CompiledLayers
from poweropd_lite.models.loading import check_head, final_hidden, head_weight, load_causal_lm, nf4, stay_unpacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Teacher:
    """A loaded teacher."""

    model: "PreTrainedModel"
    compiled: CompiledLayers | None = None  # set by `compile`

    def compile(self, say: Callable[[str], None]) -> None:
        """Has the decoder layers compiled at their first use, which `say` hears of."""
        self.compiled = CompiledLayers(self.model, "teacher", False, say)

    @property
    def head(self) -> Tensor:
        """The head's weight [V, D]; never quantised."""
        return head_weight(self.model)

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T], without gradient."""
        with torch.no_grad():
            if self.compiled is not None:
                self.compiled.make(ids.shape[0], self._hidden)
            return self._hidden(ids)

    def _hidden(self, ids: Tensor) -> Tensor:
        return final_hidden(self.model, ids)


def load_teacher(
    name: str, bits: int, device: torch.device, dtype: torch.dtype, remote_code: bool = False, **placing: Any
) -> Teacher:
    """Returns a teacher by its hub id or folder on `device`, in evaluation mode; raises UserError if it is no causal LM.

    `bits` 4 is NF4 with double quantisation, computed in `dtype`; 8 is LLM.int8, which training takes on CUDA alone; 16 is
    `dtype` (bfloat16 where that is float32); 32 is float32. `placing` is for one that need not fit on the device
    (offload.placing).
    """
    options = dict(placing)
    if bits == 4:
        options["quantization_config"] = nf4(dtype)
    elif bits == 8:
        from transformers import BitsAndBytesConfig

        # It says at every call of every layer that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif bits == 16:
        dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    else:
        dtype = torch.float32
    if options:
        options.setdefault("device_map", {"": device})
    model: Any = load_causal_lm(name, "teacher", dtype, remote_code, **options)
    if not options:
        model.to(device)
    stay_unpacked(model)
    model.requires_grad_(False).eval()
    check_head(model, name)
    return Teacher(model)
