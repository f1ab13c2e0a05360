"""Checkpoints of text and images as tiny random models, made on the spot by transformers' own classes."""

from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, SMALL

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 8,
    "num_position_embeddings": 16,
}
MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
QWEN3_5 = FAMILIES["qwen3_5_text"]
WHOLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by model type: of the text, of the images
    "gemma3": (FAMILIES["gemma3_text"], VISION),
    "qwen3_5": (QWEN3_5, TOWER),
    "qwen3_5_moe": (QWEN3_5 | MIXTURE, TOWER),
    "mistral3": ({"model_type": "mistral", "head_dim": 16}, VISION | {"model_type": "pixtral", "head_dim": 16}),
    "smolvlm": ({"model_type": "llama"}, VISION),
}  # fmt: skip


def make_whole(name: str, folder: Path, seed: int = 0, **text: Any) -> str:
    """Saves a random `...ForConditionalGeneration` in float32, in several files, and returns its folder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    own, vision = WHOLES[name]
    config = AutoConfig.for_model(name, text_config=SMALL | own | text, vision_config=vision)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder, max_shard_size="200KB")
    return str(folder)
