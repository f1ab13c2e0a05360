"""Models of other families, made at random: their dropouts are off, and their linear layers are found."""

import json
import shutil

import pytest
import torch
from conftest import TINY

from poweropd_lite.base.config import load_config
from poweropd_lite.models.adapter import with_adapter
from poweropd_lite.models.loading import load_causal_lm, load_tokenizer

FAMILIES = {
    "opt": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 32,
            "max_position_embeddings": 64, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "bos_token_id": 1, "eos_token_id": 1},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dropout": 0.5, "attention_dropout": 0.5,
               "bos_token_id": 1, "eos_token_id": 1},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.5, "bos_token_id": 1, "eos_token_id": 1},
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, vocab_size=50, **FAMILIES[request.param])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_training_forward_is_the_same_twice(family):
    model = load_causal_lm(family, "student", torch.float32).train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_all_linear_finds_the_layers(family):
    model = with_adapter(load_causal_lm(family, "student", torch.float32), load_config(lora_rank=2))
    adapted = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A." in name
    }
    assert adapted in (
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},  # OPT
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},  # Falcon
        {"c_attn", "c_proj", "c_fc"},  # GPT-2
    )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    from poweropd_lite.base.errors import UserError

    for file in ("config.json", "tokenizer_config.json"):
        shutil.copy(TINY / "student" / file, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"]
    with pytest.raises(
        UserError, match=r"no tokenizer for the student .* \(tokenizer.json, or those of its kind\) are not there"
    ):
        load_tokenizer(str(tmp_path), "student")
