"""What families do to their logits, by what their configs call it."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What configs call a cap of the logits, what they are multiplied by, and what they are divided by (in HyperCLOVA X multiplied).
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS, _DIVISOR = ("logit_scale", "lm_head_multiplier", "output_multiplier"), "logits_scaling"


def logit_form(model_config: "PretrainedConfig") -> tuple[float, float | None]:
    """Returns what a family multiplies its logits by, and their soft cap or None: Head's `scale` and `cap`."""
    config = model_config.get_text_config()
    # A name that the config's own class does not know is a stray one, which no forward reads.
    names = [name for name in (*_CAPS, *_FACTORS, _DIVISOR) if hasattr(type(config), name)]
    said = {name: value for name in names if isinstance(value := getattr(config, name), int | float) and value}
    scale = math.prod(said.get(name, 1.0) for name in _FACTORS)
    divisor = said.get(_DIVISOR, 1.0)
    scale = scale * divisor if config.model_type == "hyperclovax" else scale / divisor
    return scale, next((said[name] for name in _CAPS if name in said), None)
