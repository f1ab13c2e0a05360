"""What an adapter changes of its base's weights, and the merge itself: W + scale * B A, in float32.

Read from a live PEFT model, so that rank and alpha patterns, rsLoRA and the rest are PEFT's own; computed here a few rows
at a time, so that no weight needs be held twice. Pure maths on tensors but for `changes_of`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.models.adapter import ADAPTER, MOVES_BASE

if TYPE_CHECKING:
    from peft import PeftModel

    # which rows of a weight: a slice, or ids [N]
    Rows = slice | Tensor


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight [V, D]: low rank (`left` [V, r], `right` [r, D]) or `whole` [V, D] (or [D])."""

    left: Tensor | None = None
    right: Tensor | None = None
    scale: float = 1.0
    whole: Tensor | None = None

    @property
    def is_zero(self) -> bool:
        """Whether it leaves every weight as it is."""
        if self.left is None or self.right is None:
            return False
        return not self.left.any() or not self.right.any() or self.scale == 0

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are."""
        return all(t.isfinite().all() for t in (self.left, self.right, self.whole) if t is not None)

    def cpu(self) -> "Change":
        """Returns the same change with its numbers in the host's memory."""
        left, right, whole = (None if t is None else t.cpu() for t in (self.left, self.right, self.whole))
        return Change(left, right, self.scale, whole)

    def rows(self, base: Tensor, rows: "Rows") -> Tensor:
        """Returns these rows of the merged weight, from those of the base; float32."""
        if self.whole is not None:
            return self.whole[rows].float()
        assert self.left is not None and self.right is not None
        return base.float() + self.scale * (self.left[rows].float() @ self.right.float())


def changes_of(model: "PeftModel") -> dict[str, Change]:
    """Returns an adapter's changes by the name of the base's parameter; raises UserError for what can't be merged."""
    from peft.tuners.lora import LoraLayer

    refused = {
        "use_dora": "DoRA scales the weights' norms",
        "lora_bias": "its low-rank layers have biases",
        "layer_replication": "it has layers that the base has not",
        "alora_invocation_tokens": "it acts only behind certain tokens",
        "target_parameters": "it changes parameters outside of linear layers",
        "trainable_token_indices": "it trains rows of the embedding",
        "fan_in_fan_out": "its layers are stored transposed",
    }
    config: Any = model.peft_config[ADAPTER]
    for setting, reason in refused.items():
        if getattr(config, setting, None):
            raise UserError(f"the adapter has {setting}: {reason}, which a merge here does not do; type --to adapter")
    start = str(config.init_lora_weights).lower()
    if start.startswith(MOVES_BASE):
        raise UserError(
            f"the adapter began with init_lora_weights {start}, which changes the base too; convert it with PEFT first (save_pretrained "
            "with path_initial_model_for_weight_conversion), or type --to adapter"
        )
    if config.bias != "none":
        raise UserError(f"the adapter trains biases ({config.bias}), which a merge here does not do; type --to adapter")
    found: dict[str, Change] = {}
    module: Any
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.scaling:
            found[f"{name}.weight"] = _low_rank(name, module)
        elif hasattr(module, "modules_to_save") and ADAPTER in module.modules_to_save:
            for parameter, value in module.modules_to_save[ADAPTER].named_parameters():
                found[f"{name}.{parameter}"] = Change(whole=value.detach())
    broken = [name for name, change in found.items() if not change.is_finite]
    if broken:
        raise UserError(
            f"the adapter holds numbers that are not finite ({len(broken)} weights, for one {broken[0]}): its training went "
            "wrong; export an earlier one"
        )
    return found


def _low_rank(name: str, module: Any) -> Change:
    scale = module.scaling[ADAPTER]
    if ADAPTER in module.lora_A:
        a, b = module.lora_A[ADAPTER].weight.detach(), module.lora_B[ADAPTER].weight.detach()
        if a.dim() == b.dim() == 2:
            return Change(left=b, right=a, scale=scale)
    elif ADAPTER in module.lora_embedding_A:
        a, b = module.lora_embedding_A[ADAPTER].detach(), module.lora_embedding_B[ADAPTER].detach()
        return Change(left=a.T, right=b.T, scale=scale)
    raise UserError(
        f"the adapter's layer {name} is a {type(module).__name__}, which a merge here does not know; type --to adapter"
    )
