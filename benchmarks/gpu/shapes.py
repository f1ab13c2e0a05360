"""Qwen3 in its true shapes with random weights, built where it is used: no hub, no disk, no download.

`tiny` shapes stand in for them in the tests, which run every part of this benchmark on a CPU.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from source, uninstalled

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.models.adapter import with_adapter
from poweropd_lite.models.loading import quiet_dropout
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher

VOCABULARY, TOKENS = 151_936, 151_669  # rows of the head, and ids that the tokenizer has
STOP = 151_645


@dataclass(frozen=True)
class Shape:
    """A Qwen3: as in its published config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool
    vocabulary: int = VOCABULARY
    head_size: int = 128


SHAPES = {
    "0.6b": Shape(1024, 28, 16, 8, 3072, True),
    "1.7b": Shape(2048, 28, 16, 8, 6144, True),
    "4b": Shape(2560, 36, 32, 8, 9728, True),
    "8b": Shape(4096, 36, 32, 8, 12288, False),
    "tiny-student": Shape(64, 2, 4, 2, 128, True, 1000, 32),
    "tiny-teacher": Shape(128, 2, 4, 2, 256, False, 1000, 32),
}


if torch.cuda.is_available():
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in a run (run/session.py)


def device() -> torch.device:
    """The card, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_config(name: str):
    """Returns the config of a shape."""
    from transformers import Qwen3Config

    s = SHAPES[name]
    return Qwen3Config(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_size,
        intermediate_size=s.mlp,
        tie_word_embeddings=s.tied,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attn_implementation="sdpa",
    )


def make(name: str, dtype: torch.dtype):
    """Returns a random Qwen3 of a shape, on the device, in `dtype`."""
    from transformers import Qwen3ForCausalLM

    config = model_config(name)
    torch.manual_seed(len(name) + config.hidden_size)
    standing = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(standing)
    quiet_dropout(model)
    return model


def make_student(name: str, config: Config, dtype: torch.dtype) -> Student:
    """Returns a student as load_student makes it, from random weights."""
    model = make(name, torch.float32 if config.full_finetune else dtype)
    if not config.full_finetune:
        model = with_adapter(model, config)
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, device(), dtype)


def make_teacher(name: str, dtype: torch.dtype) -> tuple[Teacher, int]:
    """Returns a teacher and its bits: 4 (NF4, double quantisation) where bitsandbytes is installed, else 16."""
    model = make(name, dtype).requires_grad_(False).eval()
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return Teacher(model), 16
    for parent in list(model.model.modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear:
                layer = Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                    device="meta",
                )
                layer.weight = type(layer.weight)(
                    linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                setattr(parent, child, layer.to(device()))
                if hasattr(layer, "support_avx512bf16_for_cpu"):
                    layer.support_avx512bf16_for_cpu = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Teacher(model), 4


def prompts(count: int, length: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Returns random prompts, the same at every call."""
    ids = torch.randint(0, min(vocabulary, TOKENS), (count, length), generator=torch.Generator().manual_seed(0))
    return [tuple(row) for row in ids.tolist()]


def sampling(shape: Shape) -> Sampling:
    """Plain sampling, without the rows that no token has."""
    return Sampling(forbidden=torch.arange(min(TOKENS, shape.vocabulary - 10), shape.vocabulary, device=device()))


def settings(**changes) -> Config:
    """The paper's recipe with changes; no file, no hub."""
    return load_config(**{"reward": "power", "alpha": 1.0, **changes})
