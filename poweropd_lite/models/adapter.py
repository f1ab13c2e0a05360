"""The LoRA adapter: which modules get one, and PEFT's way of putting it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER = "default"  # PEFT's own name for a model's first adapter


def with_adapter(base: "PreTrainedModel", config: Config) -> "PeftModel":
    """Returns the frozen `base` with a LoRA adapter of the config's seed on it."""
    from peft import LoraConfig, get_peft_model

    wanted, whole = adapter_modules(base, config)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # a float serves as well as PEFT's int
        lora_dropout=0.0,
        target_modules=wanted,
        modules_to_save=whole or None,
        # A tied head and embedding stay one matrix when either is trained whole.
        ensure_weight_tying=bool(whole) and bool(base.config.tie_word_embeddings),
        task_type="CAUSAL_LM",
    )
    base.requires_grad_(False)
    with explained_adapter(config):
        model = get_peft_model(base, lora)
    if hasattr(base.get_output_embeddings(), "lora_A"):
        raise UserError("an adapter on the head is not supported; train the head whole: --modules-to-save lm_head")
    return model


def uncast_inputs(model: "PreTrainedModel | PeftModel") -> None:
    """Keeps PEFT from casting an adapter's inputs to float32, whole activations which autocast casts back to the same numbers.

    For a model whose every forward is under autocast, a recomputed one too: a switch of the layers, and no context.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def adapter_modules(base: "PreTrainedModel", config: Config) -> tuple[list[str], list[str]]:
    """Returns the names of the modules that get an adapter and of those trained whole; raises UserError for absent ones.

    all-linear is every linear module but the head, by name: Unsloth wants names.
    """
    modules = list(base.named_modules())
    linear = sorted({name.rsplit(".", 1)[-1] for name, m in modules if isinstance(m, torch.nn.Linear)} - {"lm_head"})
    targets = [t.strip() for t in config.lora_targets.split(",") if t.strip()]
    whole = [name.strip() for name in config.modules_to_save.split(",") if name.strip()]
    wanted = linear if targets == ["all-linear"] else targets
    names = {name.rsplit(".", 1)[-1] for name, _ in modules}
    missing = [name for name in wanted + whole if name not in names]
    if missing:
        raise UserError(
            f"{config.student} has no module named {', '.join(missing)}; its linear ones are {', '.join(linear)}"
        )
    return wanted, whole


@contextmanager
def explained_adapter(config: Config) -> Iterator[None]:
    """Turns what PEFT says of impossible targets into a UserError."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"PEFT can't put an adapter on '{config.lora_targets}' and train '{config.modules_to_save}' whole: {error}"
        ) from None
