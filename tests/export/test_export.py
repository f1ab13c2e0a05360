"""Exports of a real run, opened as other programs open them, say what the live adapter says.

The reference is plain PEFT on plain transformers, on texts of this file, over the whole vocabulary.
"""

import json
import shutil
import signal
from pathlib import Path

import forked
import pytest
import torch
from conftest import quick_flags, run_export, run_python, run_train
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from poweropd_lite.models.loading import model_path

BASE = model_path("bundled", "student")
TEXTS = ["Compute 8 + 5 * 3.", "Ann has 12 pens and loses 5.", "x = 7, so 2x + 1 = 15\n\nThe answer is \\boxed{15}."]
KINDS = {
    "adapter": ["--to", "adapter"],
    "float32": ["--to", "merged-16bit", "--dtype", "float32"],
    "bfloat16": ["--to", "merged-16bit"],
    "float16": ["--to", "merged-16bit", "--dtype", "float16"],
    "nf4": ["--to", "merged-4bit"],
    "f16": ["--to", "gguf", "--gguf-type", "f16"],
    "bf16": ["--to", "gguf", "--gguf-type", "bf16"],
    "q8_0": ["--to", "gguf"],
}
# mean and largest difference of a log-prob, nats, of tokens that the live model gives more than e^-7
LIMITS = {
    "adapter": (1e-6, 1e-5), "float32": (1e-5, 1e-4), "float16": (2e-3, 0.02), "bfloat16": (0.02, 0.2), "nf4": (0.6, 4),
    "f16": (2e-3, 0.02), "bf16": (0.02, 0.2), "q8_0": (0.05, 0.5),
}  # fmt: skip


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[str, Path]:
    """A folder for each kind of export of a run of sixteen steps, made by the real command."""
    folder = tmp_path_factory.mktemp("exports")
    flags = quick_flags(steps=16, batch_size=16, eval_every=0)
    done = run_train("--config", "bundled", *flags, "--output", "run", cwd=folder)
    assert done.returncode == 0 and "export:      python -m poweropd_lite.export run --to gguf" in done.stdout, (
        done.stderr
    )
    for name, flags in KINDS.items():
        done = run_export("run", *flags, "--output", name, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "the weights say what training saw" in done.stdout
            and "proven: the likeliest tokens' log-probs within" in done.stdout
        )
    return {name: folder / name for name in KINDS} | {"run": folder / "run"}


def tokenized() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXTS[0]}], tokenize=False, add_generation_prompt=True
    )
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in [chat, *TEXTS]]


@torch.no_grad()
def logprobs(model) -> torch.Tensor:
    """All next-token log-probs of the texts, [positions, vocabulary]."""
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1) for ids in tokenized()])


def base_model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="session")
def live(exports) -> torch.Tensor:
    return logprobs(PeftModel.from_pretrained(base_model(), str(exports["run"] / "adapter")))


def opened(folder: Path, kind: str):
    """An export as its users open it, computing in float32."""
    if kind == "adapter":
        return PeftModel.from_pretrained(base_model(), str(folder))
    if kind in ("f16", "bf16", "q8_0"):
        return AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=f"model-{kind}.gguf", config=AutoConfig.from_pretrained(BASE), dtype=torch.float32
        )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_the_live_adapter_says(exports, live, kind):
    said = logprobs(opened(exports[kind], kind))
    likely = live > -7
    difference = (said - live).abs()[likely]
    mean, largest = LIMITS[kind]
    assert difference.mean() < mean and difference.max() < largest, (difference.mean(), difference.max())
    effect = (logprobs(base_model()) - live).abs()[likely].mean()
    assert effect > 0.2  # what sixteen steps of training changed
    proof = json.loads((exports[kind] / "export.json").read_text())["proof"]
    assert proof["difference"]["mean"] < 1.5 * mean and 0.75 < proof["effect_kept"] < 1.25
    assert proof["verdict"] == "proven" and (kind == "adapter" or proof["unrounded_merge"]["largest"] < 1e-4)


def test_merged_weights_are_peft_s_own_rounded_once(exports):
    peft = PeftModel.from_pretrained(base_model(), str(exports["run"] / "adapter")).merge_and_unload().state_dict()
    peft.pop("lm_head.weight")
    for kind in ("float32", "bfloat16", "float16"):
        written = load_file(exports[kind] / "model.safetensors")
        assert set(written) == set(peft)  # tied: one matrix for embedding and head
        for name, weight in written.items():
            # Two orders of a sum may differ in the last bit, and so fall on the other side of a rounding.
            assert weight.dtype == getattr(torch, kind)
            torch.testing.assert_close(
                weight, peft[name].to(weight.dtype), rtol=2**-7 if kind == "bfloat16" else 2**-10, atol=1e-6
            )
            assert (weight != peft[name].to(weight.dtype)).float().mean() < (0.5 if kind == "float32" else 0.01)
        config = json.loads((exports[kind] / "config.json").read_text())
        assert config["tie_word_embeddings"] is True and config["dtype"] == kind


def test_the_4_bit_model_is_nf4_of_the_merge(exports):
    model = AutoModelForCausalLM.from_pretrained(exports["nf4"])
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit" and layer.weight.quant_state.quant_type == "nf4"
    import bitsandbytes.functional as bnb

    merged = load_file(exports["bfloat16"] / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    gap = (bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float() - merged.float()).abs()
    blocks = merged.float().view(-1, 64).abs().amax(1)
    # NF4's widest step is from -1 to -0.6962 of a block's largest number: half of it, and double quantisation's rounding.
    assert (gap.view(-1, 64).amax(1) <= 0.17 * blocks + 1e-3).all()
    assert not (exports["nf4"] / ".merged").exists()


def test_gguf_has_the_tokenizer_s_ids_the_template_and_the_stops(exports):
    import gguf

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for kind in ("f16", "bf16", "q8_0"):
        theirs = AutoTokenizer.from_pretrained(exports[kind], gguf_file=f"model-{kind}.gguf")
        for text in [*TEXTS, "naïve café 東京\n\n  12345\t", "<|im_start|>user\nWhat?<|im_end|>\n"]:
            assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"], text
        reader = gguf.GGUFReader(exports[kind] / f"model-{kind}.gguf")
        values = {name: field.contents() for name, field in reader.fields.items()}
        assert values["tokenizer.ggml.pre"] == "qwen2" and len(values["tokenizer.ggml.tokens"]) == 512
        assert values["tokenizer.chat_template"].endswith(tokenizer.chat_template) and values["general.name"] == kind
        assert values["tokenizer.ggml.eos_token_id"] == 474 and values["tokenizer.ggml.eot_token_id"] == 476
        assert values["tokenizer.ggml.add_bos_token"] is False
        assert {t.name for t in reader.tensors if t.tensor_type.name == "F32"} >= {"output_norm.weight"}
        assert {t.tensor_type.name for t in reader.tensors if len(t.shape) == 2} == {kind.upper()}


def test_exports_stop_where_training_stopped(exports):
    for kind in ("adapter", "bfloat16", "nf4"):
        generation = json.loads((exports[kind] / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [474, 476]  # the student's <|endoftext|>, the teacher's <|im_end|>
        assert all(p.stat().st_mode & 0o777 == 0o644 for p in exports[kind].iterdir())
    model = AutoModelForCausalLM.from_pretrained(exports["bfloat16"], dtype=torch.float32)
    assert model.generation_config.eos_token_id == [474, 476]
    modelfile = (exports["q8_0"] / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-q8_0.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile


def test_prompts_are_put_as_in_training_unless_asked_otherwise(exports):
    ask = [{"role": "user", "content": "1 + 1?"}]
    base = AutoTokenizer.from_pretrained(BASE)
    ours = AutoTokenizer.from_pretrained(exports["bfloat16"])
    plain, thinking, empty = (base.apply_chat_template(ask, tokenize=False, add_generation_prompt=True, **kw)
                              for kw in ({}, {"enable_thinking": True}, {"enable_thinking": False}))  # fmt: skip
    assert plain == thinking != empty and empty.endswith("<think>\n\n</think>\n\n")
    assert ours.apply_chat_template(ask, tokenize=False, add_generation_prompt=True) == empty
    assert ours.apply_chat_template(ask, tokenize=False, add_generation_prompt=True, enable_thinking=True) == thinking


def test_the_modelfile_s_turn_is_the_chat_template_s(exports):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    template = (exports["q8_0"] / "Modelfile").read_text().split('TEMPLATE """')[1].split('"""')[0]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    template, _, after = template.partition("{{ .Response }}")
    assert after == "<|im_end|>\n"
    filled = template.replace("{{ if .System }}", "").replace("{{ end }}", "")
    filled = filled.replace("{{ .System }}", "Be brief.").replace("{{ .Prompt }}", "1 + 1?")
    assert filled == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def test_the_card_says_what_it_is(exports):
    card = (exports["adapter"] / "README.md").read_text()
    for words in ("library_name: peft", "with reward power, alpha 10 (p^alpha - q^alpha)", "| teacher | bundled (4-bit) |", "| steps | 16 of 16 rollouts",
                  "| after training |", "PeftModel.from_pretrained", "vllm serve", "base bundled: apache-2.0", "export.json"):  # fmt: skip
        assert words in card, words
    assert "ollama create" in (exports["q8_0"] / "README.md").read_text()
    assert "vllm serve" in (exports["bfloat16"] / "README.md").read_text()
    saved = json.loads((exports["adapter"] / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == BASE and "revision" in saved


def test_an_export_can_be_exported_again_and_replaced_only_when_asked(exports, tmp_path):
    shutil.copytree(exports["adapter"], tmp_path / "a")
    flags = ["a", "--to", "merged-16bit", "--output", "m"]
    again = run_python("-m", "poweropd_lite.export", *flags, cwd=tmp_path)  # started anew, to write the same bytes
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| steps | 16 of 16 rollouts" in card and "| after training |" in card  # carried over from the first export
    assert again.returncode == 0 and "what training saw" in again.stdout, again.stderr
    first = load_file(exports["bfloat16"] / "model.safetensors")
    assert all(
        torch.equal(first[name], weight) for name, weight in load_file(tmp_path / "m" / "model.safetensors").items()
    )
    refused = run_export("a", "--to", "merged-16bit", "--output", "m", cwd=tmp_path)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    done = run_export("a", "--to", "merged-16bit", "--dtype", "float16", "--output", "m", "--overwrite", cwd=tmp_path)
    assert done.returncode == 0 and json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_export_leaves_nothing_that_looks_finished(exports, tmp_path, number):
    """Started with SIGINT ignored, as a shell starts what a script puts in the background."""
    code = """
import os, signal, sys, time
from poweropd_lite.export import folders
signal.signal(signal.SIGINT, signal.SIG_IGN)
def killed(*_):
    os.kill(os.getpid(), int(sys.argv[-1]))
    while True:
        time.sleep(0.01)
folders.check_merged = killed
from poweropd_lite.cli import run_command
from poweropd_lite.export.__main__ import main
run_command(lambda: main(sys.argv[1:-1]))
"""
    flags = [str(exports["run"]), "--to", "merged-16bit", "--output", "out"]
    code = forked.run("-c", code, *flags, str(int(number)), cwd=tmp_path).returncode
    assert not (tmp_path / "out").exists()
    if number == signal.SIGKILL:
        assert code == -number
        done = run_export(str(exports["run"]), "--to", "merged-16bit", "--output", "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr  # what was left behind is in nobody's way
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    else:
        assert code == 128 + number and list(tmp_path.iterdir()) == []


def make_adapter(folder: Path, std: float = 0.02, **settings) -> None:
    """Writes an adapter on the bundled base with random numbers in place of training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        base_model(),
        LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
        ),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name and "embedding_A" not in name:
                parameter += std * torch.randn(parameter.shape)
    model.save_pretrained(folder, save_embedding_layers=False)


@pytest.mark.parametrize(
    "settings, tied",
    [
        ({"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}}, True),
        ({"target_modules": ["embed_tokens", "v_proj"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    ],
    ids=["patterns", "lora on the embedding", "head trained", "embedding and head trained as one"],
)
def test_an_adapter_of_any_kind_is_merged_as_peft_does_or_untied(tmp_path, settings, tied):
    make_adapter(tmp_path / "a", **settings)
    done = run_export("a", "--to", "merged-16bit", "--dtype", "float32", "--output", "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("the two are untied" in done.stdout) is (not tied) and "no reference.json" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert model.config.tie_word_embeddings is tied and (
        "lm_head.weight" in load_file(tmp_path / "m" / "model.safetensors")
    ) is (not tied)
    peft = PeftModel.from_pretrained(base_model(), str(tmp_path / "a"))
    assert (logprobs(model) - logprobs(peft)).abs().max() < 1e-4
    assert (logprobs(model) - logprobs(base_model())).abs().max() > 0.1
    done = run_export("a", "--to", "gguf", "--gguf-type", "f16", "--output", "g", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    import gguf

    names = {t.name for t in gguf.GGUFReader(tmp_path / "g" / "model-f16.gguf").tensors}
    assert ("output.weight" in names) is (not tied)


def test_a_zero_adapter_is_its_base_and_said_to_be(tmp_path):
    make_adapter(tmp_path / "a", std=0.0)
    done = run_export("a", "--to", "merged-16bit", "--output", "m", cwd=tmp_path)
    assert done.returncode == 0 and "the adapter is zero" in done.stdout, done.stderr
    make_adapter(tmp_path / "b", std=1e-12)  # which no sum in float32 feels
    said = run_export("b", "--to", "gguf", "--gguf-type", "f32", "--output", "g", cwd=tmp_path).stdout
    assert "note: the adapter moves no log-prob of the texts that were compared" in said and "is zero" not in said
    base, written = load_file(Path(BASE) / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.equal(base[name], weight) for name, weight in written.items())


def test_changes_too_small_for_bfloat16_are_not_handed_over(tmp_path):
    make_adapter(tmp_path / "a", std=1e-5)
    done = run_export("a", "--to", "merged-16bit", "--output", "m", cwd=tmp_path)
    assert done.returncode == 2 and "of what the adapter changes" in done.stderr and "--dtype float16" in done.stderr
    assert not (tmp_path / "m").exists()
    done = run_export("a", "--to", "merged-16bit", "--dtype", "float32", "--output", "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_base_in_shards_stays_in_shards(tmp_path):
    base = base_model()
    base.save_pretrained(tmp_path / "base", max_shard_size="800KB")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "base")
    make_adapter(tmp_path / "a")
    saved = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(
        json.dumps(saved | {"base_model_name_or_path": str(tmp_path / "base")})
    )
    done = run_export("a", "--to", "merged-16bit", "--dtype", "float32", "--output", "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "base").glob("*.safetensors"))) == len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    peft = PeftModel.from_pretrained(base_model(), str(tmp_path / "a"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert (logprobs(model) - logprobs(peft)).abs().max() < 1e-4


def test_a_whole_model_goes_to_gguf_without_an_adapter(tmp_path, live):
    done = run_export("bundled-student", "--to", "gguf", "--gguf-type", "f16", "--output", "g", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (logprobs(opened(tmp_path / "g", "f16")) - logprobs(base_model())).abs()[live > -7].max() < 0.02


def test_the_adapter_that_was_typed_is_exported_and_not_the_run_s_own(exports, tmp_path):
    shutil.copytree(exports["run"], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    make_adapter(tmp_path / "run" / "other")
    done = run_export("run/other", "--to", "merged-16bit", "--dtype", "float32", "--output", "m", cwd=tmp_path)
    assert done.returncode == 0 and "no reference.json" in done.stdout, done.stderr
    peft = PeftModel.from_pretrained(base_model(), str(tmp_path / "run" / "other"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert (logprobs(model) - logprobs(peft)).abs().max() < 1e-4


def test_a_base_with_odd_files_is_exported(tmp_path):
    """Sampling settings that transformers refuses to save, and tensors that are no part of the model, as old Llamas have."""
    from safetensors.torch import save_file

    shutil.copytree(BASE, tmp_path / "base")
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.7, "top_p": 0.8}))
    weights = load_file(Path(BASE) / "model.safetensors")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
    }
    save_file(weights | extra, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    for to in ("merged-16bit", "gguf"):
        done = run_export("base", "--to", to, "--output", to, cwd=tmp_path)
        assert done.returncode == 0 and "1 tensors in the base's files are no part of the model" in done.stdout, (
            done.stderr
        )
    assert set(load_file(tmp_path / "merged-16bit" / "model.safetensors")) == set(weights)
    assert json.loads((tmp_path / "merged-16bit" / "generation_config.json").read_text())["temperature"] == 0.7


def test_a_run_of_every_weight_is_exported_and_checked(tmp_path):
    flags = quick_flags(steps=2, eval_every=0, save_every=2)
    done = run_train("--config", "bundled", "--full-finetune", "--lr", "1e-3", *flags, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_export("run", "--to", "merged-16bit", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 0 and "the weights say what training saw" in done.stdout, done.stderr
    ours, theirs = (
        load_file(tmp_path / "run" / name / "model.safetensors") for name in ("export/merged-16bit", "model")
    )
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())
    card = (tmp_path / "run" / "export" / "merged-16bit" / "README.md").read_text()
    assert "One model in float32, of bundled." in card and "| trained | every weight |" in card


def test_an_adapter_of_a_4_bit_base_is_checked_on_that_base_and_merged_into_the_16_bit_one(tmp_path):
    flags = quick_flags(steps=3, eval_every=0, save_every=3)
    done = run_train("--config", "bundled", "--student-bits", "4", *flags, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "copy")
    for name in ("run", "copy"):
        done = run_export(name, "--to", "merged-16bit", "--dtype", "float32", "--output", f"m-{name}", cwd=tmp_path)
        assert done.returncode == 0 and "what training saw" in done.stdout and "on its base in 4 bits" in done.stdout, (
            done.stderr
        )
    peft = PeftModel.from_pretrained(base_model(), str(tmp_path / "copy"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m-copy", dtype=torch.float32)
    assert (logprobs(model) - logprobs(peft)).abs().max() < 1e-4
