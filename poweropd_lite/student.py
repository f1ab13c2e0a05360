"""The model that learns: base weights, a LoRA adapter or every weight, and what rollouts are decoded with."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poweropd_lite.config import Config
from poweropd_lite.errors import UserError
from poweropd_lite.models import check_head, final_hidden, head_weight, load_causal_lm, model_body

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER = "default"  # PEFT's own name for a model's first adapter


@dataclass
class Student:
    """A loaded student. `dtype` is what it computes in; trained weights are float32 whatever that is."""

    model: "PreTrainedModel | PeftModel"
    device: "torch.device"
    dtype: "torch.dtype"
    merged: "MergedCopy | None" = field(default=None, repr=False)

    @property
    def head(self) -> "Tensor":
        """The head's weight [V, D]."""
        return head_weight(self.model)

    def trainable(self) -> "dict[str, nn.Parameter]":
        """The parameters that learn, by name, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def compute(self) -> "AbstractContextManager":
        """The autocast context of every forward."""
        import torch

        half = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)

    def hidden(self, ids: "Tensor") -> "Tensor":
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T]."""
        self.model.train()  # transformers recomputes activations (gradient checkpointing) in this mode only
        with self.compute():
            return final_hidden(self.model, ids)

    def decoder(self) -> "tuple[nn.Module, Tensor]":
        """Returns (body, head) for decoding with the weights as they are now."""
        if self.merged is None:
            self.model.eval()  # in training mode gradient checkpointing would leave the KV cache out
            return model_body(self.model), self.head
        self.merged.sync()
        return model_body(self.merged.model), head_weight(self.merged.model)


def load_student(config: Config, device: "torch.device", dtype: "torch.dtype") -> Student:
    """Returns the student of a config on `device`, every dropout off, seeded by `config.seed`.

    With LoRA the base keeps `dtype` and is frozen; adapter and `modules_to_save` are float32. With full fine-tuning every
    weight is float32 and computed in `dtype`. Raises UserError for target modules that the model does not have.
    """
    import torch

    base = load_causal_lm(config.student, "student", config, torch.float32 if config.full_finetune else dtype).to(
        device
    )
    check_head(base, config.student)
    merged = None
    if config.full_finetune:
        model = base.requires_grad_(True)
    else:
        plain = MergedCopy.shell(base) if dtype == torch.float32 else None
        model = _with_adapter(base, config)
        merged = None if plain is None else MergedCopy(plain, model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, device, dtype, merged)


def _with_adapter(base: "PreTrainedModel", config: Config) -> "PeftModel":
    import torch
    from peft import LoraConfig, get_peft_model

    targets = config.lora_targets
    whole = [name.strip() for name in config.modules_to_save.split(",") if name.strip()]
    names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    wanted = [] if targets == "all-linear" else [t.strip() for t in targets.split(",") if t.strip()]
    missing = [name for name in wanted + whole if name not in names]
    if missing:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"{config.student} has no module named {', '.join(missing)}; its linear ones are {', '.join(linear)}"
        )
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=wanted or targets,
        modules_to_save=whole or None,
        # A tied head and embedding stay one matrix when either is trained whole.
        ensure_weight_tying=bool(whole) and bool(base.config.tie_word_embeddings),
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, lora, adapter_name=ADAPTER)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"PEFT can't put an adapter on '{targets}' and train '{config.modules_to_save}' whole: {error}"
        ) from None
    if hasattr(base.get_output_embeddings(), "lora_A"):
        raise UserError("an adapter on the head is not supported; train the head whole: --modules-to-save lm_head")
    return model


class MergedCopy:
    """A float32 copy of the student for decoding, with the adapter merged in; the base itself is never touched.

    It shares every weight that has no adapter with the student, so it costs the targeted matrices once more, and decoding
    with it costs nothing for the adapter.
    """

    def __init__(self, shell: "PreTrainedModel", model: "PeftModel") -> None:
        import torch
        from peft.tuners.lora import LoraLayer

        self.model, self.pairs = shell.eval(), []
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                copy = shell.get_submodule(name)
                copy.weight = torch.nn.Parameter(torch.empty_like(copy.weight), requires_grad=False)
                self.pairs.append((module, copy))
            elif hasattr(module, "modules_to_save"):
                parent, _, child = name.rpartition(".")
                setattr(shell.get_submodule(parent), child, module.modules_to_save[ADAPTER])

    @staticmethod
    def shell(base: "PreTrainedModel") -> "PreTrainedModel":
        """Returns a copy of the plain `base` that shares all its weights; to be taken before PEFT rebuilds `base`."""
        import copy

        return copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})

    def sync(self) -> None:
        """Brings the merged weights up to the adapter's present state."""
        import torch

        with torch.no_grad():
            for layer, copy in self.pairs:
                torch.add(layer.get_base_layer().weight, layer.get_delta_weight(ADAPTER), out=copy.weight)
