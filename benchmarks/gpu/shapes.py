"""Qwen3 in its true shapes: configs, prompts and settings, without the hub.

`tiny` shapes stand in for them in the tests, which run this benchmark on a CPU; `cut` ones have fewer layers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from source, uninstalled

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.method.logprobs import Sampling

VOCABULARY, TOKENS = 151_936, 151_669  # rows of the head, and ids that the tokenizer has
ALPHA = 0.1  # random models find a token as unlikely as e^-12: larger powers pay nothing, and float16 gradients vanish


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
    "0.6b-cut": Shape(1024, 4, 16, 8, 3072, True),
    "4b-cut": Shape(2560, 9, 32, 8, 9728, True),
    "wide-head": Shape(256, 4, 4, 2, 768, True, head_size=64),
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


def prompts(count: int, length: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Returns random prompts, the same at every call."""
    ids = torch.randint(0, min(vocabulary, TOKENS), (count, length), generator=torch.Generator().manual_seed(0))
    return [tuple(row) for row in ids.tolist()]


def sampling(shape: Shape) -> Sampling:
    """Plain sampling, without the rows that no token has."""
    return Sampling(forbidden=torch.arange(min(TOKENS, shape.vocabulary - 10), shape.vocabulary, device=device()))


def settings(**changes) -> Config:
    """The paper's recipe with changes; no file, no hub."""
    return load_config(**{"reward": "power", "alpha": ALPHA, **changes})


def body_weights(name: str) -> int:
    """Returns the weights of all projections of a shape."""
    s = SHAPES[name]
    return s.layers * s.hidden * (2 * s.heads * s.head_size + 2 * s.kv_heads * s.head_size + 3 * s.mlp)


def cache_width(name: str) -> int:
    """Returns the numbers that one token adds to the KV cache."""
    s = SHAPES[name]
    return 2 * s.layers * s.kv_heads * s.head_size
