"""Loading the student with Unsloth: its patched forward and gradient checkpointing, and on CUDA its vLLM.

On a CPU it is Unsloth's own CPU backend (from 2026.10.9 on), which runs stock transformers and PEFT. Unsloth changes
transformers' classes when it is imported, so engines/choose.py imports it before anything else is loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.models.adapter import adapter_modules, explained_adapter
from poweropd_lite.models.loading import explained_load, model_path, quiet_dropout
from poweropd_lite.models.saved import saved_settings
from poweropd_lite.models.shape import lora_rank_limit, memory_share, served_run

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_unsloth(
    config: Config, device: torch.device, dtype: torch.dtype, fast_inference: bool
) -> "PreTrainedModel | PeftModel":
    """Returns the student as Unsloth loads it, with its adapter or with every weight trained."""
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if config.recomputes else False
    options = {}
    if fast_inference:
        options = {
            "fast_inference": True,
            "gpu_memory_utilization": memory_share(served_run(config), device, dtype),
            "max_lora_rank": lora_rank_limit(config.lora_rank),  # patterns are refused
            "training": False,  # of its vLLM: else the log-probs come back tempered and truncated
        }
    with explained_load(config.student, "student", "causal language model"):
        model, _ = FastLanguageModel.from_pretrained(
            model_name=model_path(config.student, "student"),
            max_seq_length=config.longest_rollout,
            dtype=torch.float32 if config.full_finetune else dtype,
            load_in_4bit=config.student_bits == 4,
            full_finetuning=config.full_finetune,
            use_gradient_checkpointing=checkpointing,
            trust_remote_code=config.trust_remote_code,
            use_exact_model_name=True,  # not a quantised copy under another name
            offload_embedding=False,
            **options,
        )
    quiet_dropout(model)
    _check_whole(model, config)
    if config.full_finetune:
        return model.requires_grad_(True)
    wanted, whole = adapter_modules(model, config)
    more: dict[str, Any] = {"ensure_weight_tying": True} if whole and model.config.tie_word_embeddings else {}
    if config.adapter is not None:
        saved = saved_settings(Path(config.adapter))
        more = {name: bool(saved.get(name)) for name in ("use_rslora", "ensure_weight_tying")}
    with explained_adapter(config):
        return FastLanguageModel.get_peft_model(
            model,
            r=config.lora_rank,
            target_modules=wanted,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            bias="none",
            modules_to_save=whole or None,
            use_gradient_checkpointing=checkpointing,
            random_state=config.seed,
            **more,
        )


def _check_whole(model: "PreTrainedModel", config: Config) -> None:
    """Raises UserError if the checkpoint lacks tensors of the model, which would then be random; Unsloth says nothing."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    path = model_path(config.student, "student")
    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        with open(index, encoding="utf-8") as file:
            there = set(json.load(file)["weight_map"])
    else:
        single = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if single is None:  # an older format: nothing to compare
            return
        with safe_open(single, "pt") as file:
            there = set(file.keys())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lost = sorted(name for name, _ in model.named_parameters() if name not in there | tied)
    if lost:
        raise UserError(
            f"the weights of the student '{config.student}' lack {len(lost)} tensors of its config ({lost[0]}, ...), which would "
            "be random numbers; is the download whole?"
        )
