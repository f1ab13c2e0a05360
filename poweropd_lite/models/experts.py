"""The fused experts of a mixture: one parameter [experts, out, in] for all of them, which is no nn.Linear.

bitsandbytes leaves such parameters in 16 bits and says nothing, LLM.int8 and PEFT's all-linear leave them out, too.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fused_experts(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Returns every fused parameter by its name: the module that holds it, and what it is called there."""
    found = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                found[f"{path}.{name}"] = (module, name)
    return found


def is_mixture(config: Any) -> bool:
    """Whether a model's config names experts."""
    return _experts(config.get_text_config()) > 0


def active_share(config: Any) -> float:
    """Returns which part of a mixture's experts a token goes through, by its text config."""
    every = _experts(config)
    return min(1.0, getattr(config, "num_experts_per_tok", every) / every) if every else 1.0


def _experts(config: Any) -> int:
    return max(getattr(config, key, None) or 0 for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def pack_experts(model: "PreTrainedModel", device: torch.device) -> None:
    """Quantises every fused parameter to NF4 with double quantisation, one at a time on `device`; each is unpacked when used.

    bitsandbytes does it by a parametrization, whose hooks keep what is unpacked for one forward of its module.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for module, name in fused_experts(model).values():
        parameter = getattr(module, name)
        parameter.data = parameter.data.to(device)
        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")


def experts_gib(model: nn.Module, itemsize: int = 2) -> float:
    """Returns the GiB of the fused parameters at so many bytes a number."""
    return sum(math.prod(getattr(m, name).shape) for m, name in fused_experts(model).values()) * itemsize / 2**30
