"""Exports of models that are not the bundled pair: other names in the files, modules trained whole, templates with a date."""

import datetime
import json
import shutil

import pytest
import torch
from conftest import TINY, quick_flags, run_export, run_train
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from poweropd_lite.export.gguf_vocab import pre_tokenizer
from poweropd_lite.export.shards import new_shard, replace_rows
from poweropd_lite.problems.prompts import prompt_text

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 256}  # fmt: skip
FAMILIES = {
    "gpt_neox": ({}, ["query_key_value", "dense"]),
    "qwen3_moe": ({"num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}, ["q_proj", "v_proj"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_whose_files_have_other_names_is_merged_as_peft_does(family, tmp_path):
    """transformers renames GPT-NeoX's head and joins a mixture's experts when it loads them."""
    settings, targets = FAMILIES[family]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY / "student")
    config = AutoConfig.for_model(family, **SMALL, **settings, vocab_size=512, eos_token_id=tokenizer.eos_token_id)
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert set(load_file(tmp_path / "base/model.safetensors")) - set(base.state_dict())
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    done = run_export(
        "adapter", "--base", "base", "--to", "merged-16bit", "--dtype", "float32", "--output", "out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "tensors otherwise than transformers does" in done.stdout and "proven" in done.stdout
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, wanted, atol=1e-4, rtol=1e-4)


def test_a_module_trained_whole_stays_float32_in_an_exported_adapter(tmp_path):
    """Beside a bfloat16 base: what is written is what was trained, and is proven, though PEFT alone would round it."""
    flags = [
        "--config",
        "bundled",
        *quick_flags(steps=2, batch_size=4, eval_every=0, eval_problems=2),
        "--dtype",
        "bfloat16",
    ]
    done = run_train(*flags, "--modules-to-save", "lm_head", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_export("run", "--to", "adapter", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0 and "proven" in done.stdout, done.stderr
    trained, written = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("run/adapter", "out"))
    head = next(name for name in trained if "lm_head" in name)
    assert trained[head].dtype == torch.float32 and not torch.equal(trained[head], trained[head].bfloat16().float())
    assert all(torch.equal(written[name], trained[name]) for name in trained)
    base = AutoModelForCausalLM.from_pretrained(TINY / "student", dtype=torch.float32)
    assert PeftModel.from_pretrained(base, tmp_path / "out") is not None


def test_a_template_with_the_day_s_date_says_the_same_tomorrow(tmp_path):
    """strftime_now gives 26 Jul 2024 in training, so that the run, its reference and its export agree on any day."""
    for role in ("student", "teacher"):
        shutil.copytree(TINY / role, tmp_path / role)
        file = tmp_path / role / "chat_template.jinja"
        file.write_text("{{ strftime_now('%d %b %Y') }}\n" + file.read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    rendered = prompt_text([{"role": "user", "content": "1+1?"}], tokenizer, {"enable_thinking": False})
    assert rendered.startswith("26 Jul 2024<") and datetime.date.today().strftime("%d %b %Y") not in rendered
    flags = quick_flags(steps=1, batch_size=4, eval_every=0, eval_problems=2)
    pair = ["--student", "student", "--teacher", "teacher", "--output", "run"]
    assert run_train("--config", "bundled", *flags, *pair, cwd=tmp_path).returncode == 0
    sample = json.loads((tmp_path / "run/samples.jsonl").read_text().splitlines()[-1])
    assert sample["prompt"].startswith("26 Jul 2024")
    done = run_export("run", "--to", "merged-16bit", "--dtype", "float32", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0 and "the weights say what training saw" in done.stdout, done.stderr
    assert "otherwise than transformers" not in done.stdout  # this one's files are read, not its memory


def test_smollm2_s_way_of_splitting_text_has_a_name_in_llama_cpp():
    """Every digit apart, then GPT-2's pattern; llama.cpp's ids of its own texts were compared by hand."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / "student")
    for individual, name in ((True, "smollm"), (False, None)):
        steps = [Digits(individual), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
        assert pre_tokenizer(tokenizer)[0] == name


def test_a_tensor_without_a_dimension_is_written_and_written_over(tmp_path):
    file = tmp_path / "model.safetensors"
    with new_shard(file, torch.bfloat16, {"bound": (), "none": (0, 2), "pair": (2,)}) as append:
        sizes = [append(torch.full(shape, 0.5, dtype=torch.bfloat16)) for shape in ((), (0, 2), (2,))]
    assert sizes == [2, 0, 4]
    replace_rows(file, "bound", [torch.tensor(3.0, dtype=torch.bfloat16)])
    written = load_file(file)
    assert written["bound"].shape == () and written["bound"] == 3.0 and written["pair"].tolist() == [0.5, 0.5]
