"""The frozen model that scores: 4-bit by default, no generation, no gradient."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poweropd_lite.kernels.products import Head
from poweropd_lite.models.compiled import CompiledLayers
from poweropd_lite.models.experts import is_mixture, pack_experts
from poweropd_lite.models.loading import (
    check_blocks,
    check_head,
    final_hidden,
    head_of,
    load_causal_lm,
    nf4,
    stay_unpacked,
)  # fmt: skip
from poweropd_lite.models.shape import read_config
from poweropd_lite.models.streamed import StreamedLayers
from poweropd_lite.models.student import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Teacher:
    """A loaded teacher."""

    model: "PreTrainedModel"
    compiled: CompiledLayers | None = None  # set by `compile`
    streamed: StreamedLayers | None = None  # where it is in the host's memory

    def compile(self, say: Callable[[str], None]) -> None:
        """Has the decoder layers compiled at their first use, which `say` hears of."""
        self.compiled = CompiledLayers(self.model, "teacher", False, say)

    @property
    def head(self) -> Head:
        """What makes logits of its hidden states; never quantised."""
        return head_of(self.model)

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T], without gradient."""
        with torch.no_grad():
            if self.compiled is not None:
                self.compiled.make(ids.shape[0], self._hidden)
            return self._hidden(ids)

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives `hidden` of each of some ids [B, T], in order: one after the other, or streamed once for all of them."""
        return map(self.hidden, several) if self.streamed is None else self.streamed.hiddens(several)

    def _hidden(self, ids: Tensor) -> Tensor:
        return final_hidden(self.model, ids)


@dataclass
class SelfTeacher:
    """The student's own base, its adapter off: no second model."""

    student: Student
    compiled: None = None

    @property
    def head(self) -> Head:
        """The head; a run whose teacher it is trains none."""
        return self.student.head

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the base's final hidden states [B, T, D] of right-padded ids [B, T], without gradient."""
        with torch.no_grad(), self.student.without_adapter():
            return self.student.hidden(ids)

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives those of each of some ids, as they are asked for."""
        return map(self.hidden, several)


def load_teacher(
    name: str, bits: int, device: torch.device, dtype: torch.dtype, remote_code: bool = False, offload: bool = False,
    **placing: Any,
) -> Teacher:  # fmt: skip
    """Returns a teacher by its hub id or folder on `device`, in evaluation mode; raises UserError if it is no causal LM.

    `bits` 4 is NF4 with double quantisation, computed in `dtype`; 8 is LLM.int8, which training takes on CUDA alone; 16 is
    `dtype` (bfloat16 where that is float32); 32 is float32. A mixture's fused experts are NF4, too: it is read into the
    host's memory first. One that need not fit on the device stays there by `offload`, which 8 bits can't (streamed.py), or
    is placed by `placing` (offload.placing).
    """
    options, where = dict(placing), torch.device("cpu") if offload else device
    mixture = bits == 4 and not placing and is_mixture(read_config(name, "teacher", remote_code))
    if bits == 4:
        options["quantization_config"] = nf4(dtype)
        if mixture:
            options["device_map"] = {"": "cpu"}
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
        options.setdefault("device_map", {"": where})
    model: Any = load_causal_lm(name, "teacher", dtype, remote_code, **options)
    if mixture:
        pack_experts(model, where)
    if mixture or not options:
        model.to(where)
    stay_unpacked(model)
    model.requires_grad_(False).eval()
    streamed = StreamedLayers(model, device, name) if offload else None
    if bits == 4:
        check_blocks(model, name)  # on the device that unpacks
    check_head(model, name)
    if streamed is not None:
        streamed.check()
    return Teacher(model, streamed=streamed)
