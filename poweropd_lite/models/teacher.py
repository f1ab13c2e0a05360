"""The frozen model that scores: 4-bit by default, no generation, no gradient."""

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.models.loading import check_head, final_hidden, head_weight, load_causal_lm, nf4, stay_unpacked
from poweropd_lite.models.offload import streamed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass
class Teacher:
    """A loaded teacher."""

    model: "PreTrainedModel"
    streamed: int = 0  # its layers that are brought to the device only when their turn comes
    scratch: "TemporaryDirectory | None" = None  # holds those of a checkpoint that is not read in place

    @property
    def head(self) -> "Tensor":
        """The head's weight [V, D]; never quantised."""
        return head_weight(self.model)

    def hidden(self, ids: "Tensor") -> "Tensor":
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T], without gradient."""
        import torch

        with torch.no_grad():
            return final_hidden(self.model, ids)


def load_teacher(config: Config, device: "torch.device", dtype: "torch.dtype") -> Teacher:
    """Returns the teacher of a config on `device`, in evaluation mode.

    teacher_bits 4 is NF4 with double quantisation, computed in `dtype`; 8 is LLM.int8, which checks/machine.py refuses to
    train with but on CUDA; 16 is the compute dtype (bfloat16 where that is float32); 32 is float32.
    """
    return load_scorer(config, device, dtype)


def load_scorer(
    config: Config, device: "torch.device", dtype: "torch.dtype", places: dict[str, str | int] | None = None
) -> Teacher:
    """Returns the teacher as load_teacher does, in any bits on any device: LLM.int8 runs on a CPU too, for a comparison.

    `places` is a device_map, for a teacher of 16 or 32 bits that need not fit on the device (offload.layer_map).
    """
    import torch

    options = {}
    if config.teacher_bits == 4:
        options["quantization_config"] = nf4(dtype)
    elif config.teacher_bits == 8:
        import logging

        from transformers import BitsAndBytesConfig

        # It says at every call of every layer that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif config.teacher_bits == 16:
        dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    else:
        dtype = torch.float32
    away = streamed(places, device) if places else 0
    if options or away:
        options["device_map"] = places if away else {"": device}
    scratch = None
    if away and "disk" in places.values():
        scratch = TemporaryDirectory(prefix="poweropd_lite-", ignore_cleanup_errors=True)
        options["offload_folder"] = scratch.name
    if away:
        import logging

        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it says twice what is meant to be so
    model = load_causal_lm(config.teacher, "teacher", config, dtype, **options)
    if not options:
        model.to(device)
    stay_unpacked(model)
    model.requires_grad_(False).eval()
    check_head(model, config.teacher)
    return Teacher(model, away, scratch)
