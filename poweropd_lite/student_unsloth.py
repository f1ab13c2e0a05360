"""Loading the student with Unsloth: its patched forward and gradient checkpointing, and on CUDA its vLLM.

On a CPU it is Unsloth's own CPU backend (from 2026.10.9 on), which runs stock transformers and PEFT. Unsloth changes
transformers' classes when it is imported, so backends.choose_loader imports it before anything else is loaded.
"""

from typing import TYPE_CHECKING

from poweropd_lite.config import Config
from poweropd_lite.models import explained_load, model_path, quiet_dropout

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_unsloth(
    config: Config, device: "torch.device", dtype: "torch.dtype", fast_inference: bool
) -> "PreTrainedModel | PeftModel":
    """Returns the student as Unsloth loads it, with its adapter or with every weight trained."""
    import torch
    from unsloth import FastLanguageModel

    from poweropd_lite.student import adapter_modules, explained

    longest = config.max_prompt_tokens + max(config.max_new_tokens, config.eval_max_new_tokens or 0)
    checkpointing = "unsloth" if config.gradient_checkpointing else False
    options = {}
    if fast_inference:
        from poweropd_lite.engine_vllm import lora_rank_limit, memory_share

        options = {
            "fast_inference": True,
            "gpu_memory_utilization": memory_share(config, device, dtype),
            "max_lora_rank": lora_rank_limit(config.lora_rank),
            "training": False,  # of its vLLM: else the log-probs come back tempered and truncated
        }
    with explained_load(config.student, "student", "causal language model"):
        model, _ = FastLanguageModel.from_pretrained(
            model_name=model_path(config.student, "student"),
            max_seq_length=longest,
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
    if config.full_finetune:
        return model.requires_grad_(True)
    wanted, whole = adapter_modules(model, config)
    tied = {"ensure_weight_tying": True} if whole and model.config.tie_word_embeddings else {}
    with explained(config):
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
            **tied,
        )
