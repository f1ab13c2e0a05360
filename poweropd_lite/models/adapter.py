"""The LoRA adapter: which modules get one, and PEFT's way of putting it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.explained import explained

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

ADAPTER = "default"  # PEFT's own name for a model's first adapter
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base too


def with_adapter(base: "PreTrainedModel", config: Config) -> "PeftModel":
    """Returns the frozen `base` with a LoRA adapter of the config's seed on it, or one like `adapter`, not yet filled."""
    from peft import get_peft_model

    torch.manual_seed(config.seed)
    lora = _saved_settings(config.adapter) if config.adapter is not None else _new_settings(base, config)
    lora.base_model_name_or_path, lora.revision = base.name_or_path or None, None  # "" is of a model that is planned
    base.requires_grad_(False)
    with explained_adapter(config):
        model = get_peft_model(base, lora)
    if hasattr(head := base.get_output_embeddings(), "lora_A"):
        name = next(name.rsplit(".", 1)[-1] for name, module in base.named_modules() if module is head)
        mend = f"train the head whole: --modules-to-save {name}" if config.adapter is None else "merge it into its base"
        raise UserError(f"an adapter on the head ({name}) is not supported; {mend}")
    return model


def _new_settings(base: "PreTrainedModel", config: Config) -> "LoraConfig":
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    wanted, whole = adapter_modules(base, config)
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # a float serves as well as PEFT's int
        lora_dropout=0.0,
        target_modules=wanted,
        modules_to_save=whole or None,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.modules()),  # GPT-2 stores its layers transposed
        # A tied head and embedding stay one matrix when either is trained whole.
        ensure_weight_tying=bool(whole) and bool(base.config.tie_word_embeddings),
        task_type="CAUSAL_LM",
    )


def _saved_settings(path: str) -> "LoraConfig":
    """Returns PEFT's settings of an adapter, to be trained on: its dropout is off, as every other here."""
    from peft import LoraConfig

    with explained(f"the adapter in {path} can't be loaded", path, "type --adapter with another folder"):
        lora: Any = LoraConfig.from_pretrained(path)
    lora.inference_mode, lora.lora_dropout, lora.init_lora_weights = False, 0.0, True  # its weights are put in whole
    return lora


def uncast_inputs(model: "PreTrainedModel | PeftModel") -> None:
    """Keeps PEFT from casting an adapter's inputs to float32, whole activations which autocast casts back to the same numbers.

    For a model whose every forward is under autocast, a recomputed one too: a switch of the layers, and no context. DoRA keeps
    its casts: it divides by norms of whole weights, which would be half precision's.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled") and not has_dora(module):
            module.cast_input_dtype_enabled = False


def has_dora(module: Any) -> bool:
    """Whether a layer's adapter is DoRA's."""
    return bool(getattr(module, "use_dora", {}).get(ADAPTER))


def adapter_modules(base: "PreTrainedModel", config: Config) -> tuple[list[str], list[str]]:
    """Returns the names of the modules that get an adapter and of those trained whole; raises UserError for absent ones.

    all-linear is every linear module but the head, by name: Unsloth wants names.
    """
    from transformers.pytorch_utils import Conv1D

    modules, head = list(base.named_modules()), base.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)  # GPT-2's
    linear = sorted({name.rsplit(".", 1)[-1] for name, m in modules if isinstance(m, kinds) and m is not head})
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


def left_out(base: "PreTrainedModel") -> dict[str, int]:
    """Returns the matrices that all-linear gives no adapter, embeddings and head aside: elements by module.parameter."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, int] = {}
    for path, module in base.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    key = f"{path.rsplit('.', 1)[-1]}.{name}"
                    found[key] = found.get(key, 0) + parameter.numel()
    return found


@contextmanager
def explained_adapter(config: Config) -> Iterator[None]:
    """Turns what PEFT says of impossible targets into a UserError."""
    if config.adapter is not None:
        with explained(
            f"the adapter in {config.adapter} does not fit {config.student}", None, "type --student with its base"
        ):
            yield
        return
    whole = f" and train '{config.modules_to_save}' whole" if config.modules_to_save else ""
    mend = "type other --lora-targets, such as all-linear, or other --modules-to-save"
    with explained(f"PEFT can't put an adapter on '{config.lora_targets}'{whole}", None, mend):
        yield
