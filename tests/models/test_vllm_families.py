"""What vLLM is given for a family of models, and what it is not taken for; itself it is tested in tests/engines."""

import math

import pytest
import torch
from families import make_family

from poweropd_lite.engines import choose as backends
from poweropd_lite.models.shape import Served, cache_bytes, read_config, read_shape


def test_vllm_is_given_room_for_windows_and_for_states(tmp_path):
    def size(family, longest, **changes):
        folder = make_family(family, tmp_path / family, **changes)
        return cache_bytes(read_shape(folder, "student"), Served(folder, longest, 1, 1, 4), torch.bfloat16)

    token = 2 * 2 * 16 * 2  # keys and values, two heads of 16, bfloat16
    # a layer with a window of 8 keeps it, the 8,192 tokens that are read at once, and a block; the other every token
    assert size("gemma3_text", 20_000, max_position_embeddings=32_768) == token * (8 + 8192 + 128 + 20_000 + 128)
    # four value heads of 128 x 128, and three columns of a convolution of 2 x 2 x 128 + 4 x 128: the size of every page
    sizes = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
    page = math.ceil((4 * 128 * 128 + 3 * 1024) * 2 / token) + 128
    assert size("qwen3_5_text", 200, **sizes) == token * (2 * page + 200 + page)


@pytest.mark.parametrize(
    ("family", "device", "dtype", "adapted", "words"),
    [
        ("llama", "cpu", torch.float32, True, None),
        ("qwen3_moe", "cpu", torch.float32, True, "select_unquantized_moe_backend"),
        ("qwen3_moe", "cpu", torch.float32, False, None),
        ("qwen3_moe", "cuda", torch.bfloat16, True, None),
        ("qwen3_5_text", "cpu", torch.float32, True, "bfloat16 alone"),
        ("qwen3_5_text", "cpu", torch.bfloat16, True, None),
        ("gpt2", "cuda", torch.bfloat16, True, "takes no adapter"),
        ("gpt2", "cuda", torch.bfloat16, False, None),
    ],
)
def test_what_vllm_lacks_for_a_family_is_named(family, device, dtype, adapted, words, tmp_path, monkeypatch):
    config = read_config(
        make_family(family, tmp_path), "student"
    )  # before transformers can be told that all is installed
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)  # torchvision is here
    said = backends.vllm_lacks(config, device, dtype, adapted)
    assert said is None if words is None else words in said
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    if family == "qwen3_5_text":
        assert "imports torchvision" in backends.vllm_lacks(config, "cuda", torch.bfloat16, True)
