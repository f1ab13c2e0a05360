"""The families of docs/models.md as tiny random models, made on the spot by transformers' own classes."""

from pathlib import Path
from typing import Any

import torch

VOCAB, WINDOW = 96, 8
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
GEMMA = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
# In rows of 64 numbers: bitsandbytes on a CPU unpacks others wrongly.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "qwen3_5_text": {"head_dim": 16, "num_hidden_layers": 3, "layer_types": ["linear_attention"] * 2 + ["full_attention"],
                     "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} | dict.fromkeys(sorted(SMALL.keys() - {"vocab_size"})),
}  # fmt: skip


def make_family(name: str, folder: Path, seed: int = 0, **changes: Any) -> str:
    """Saves a family's random model in float32 and returns its folder. Its matrices are large enough for states to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in {**SMALL, **FAMILIES[name]}.items() if value is not None} | changes
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return str(folder)
