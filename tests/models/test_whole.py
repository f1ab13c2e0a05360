"""Checkpoints of text and images: what is taken of them, and that a run and its exports give back a whole.

What is compared with is the class that transformers itself makes of the checkpoint, run on text alone.
"""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import DATA, TINY, run_evaluate, run_export, run_train
from families import SMALL, make_family
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from wholes import VISION, WHOLES, make_whole

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair_checks import Side, check_part
from poweropd_lite.engines.choose import choose_engine
from poweropd_lite.evaluate.serve import load_target, vllm_unfit_for
from poweropd_lite.evaluate.target import find_target
from poweropd_lite.models.loading import load_causal_lm, load_whole_config, taken_from
from poweropd_lite.models.saved import PREFIX
from poweropd_lite.models.shape import read_shape
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.models.whole import no_language_model, own_name

CPU = torch.device("cpu")
IDS = torch.arange(5, 45).view(2, 20)


@torch.no_grad()
def said(model) -> torch.Tensor:
    """Log-probs of all ids at every place, without padding or cache."""
    return model.eval()(input_ids=IDS, use_cache=False).logits.float().log_softmax(-1)


def stored(folder: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """The file and the values of every tensor in a folder, by its name there."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: (file.name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("family", WHOLES)
def test_the_language_model_says_what_the_whole_says_of_text(family, tmp_path):
    folder = make_whole(family, tmp_path)
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    assert taken_from(folder, "student") == type(whole).__name__
    student = load_student(load_config(student=folder, lora_rank=2), CPU, torch.float32)
    teacher = load_teacher(folder, 32, CPU, torch.float32).model
    for model in (student.model, teacher):
        torch.testing.assert_close(said(model), said(whole), atol=1e-4, rtol=0)
    names = [name for name, _ in teacher.named_parameters()]
    assert {name.split(".")[1] for name in names} <= {"layers", "embed_tokens", "norm", "weight"}
    theirs = {own_name(name): p for name, p in whole.named_parameters()}
    assert all(torch.equal(p, theirs[name]) for name, p in teacher.named_parameters())
    assert read_shape(folder, "teacher").elements == sum(p.numel() for p in teacher.parameters())  # which plan counts
    packed = load_teacher(folder, 4, CPU, torch.float32).model
    assert 1e-3 < (said(packed) - said(whole)).abs().mean() < 0.5


def test_a_language_model_is_saved_under_its_own_names(tmp_path):
    """As full fine-tuning hands it over: a text model, which loads as any other."""
    model = load_causal_lm(make_whole("gemma3", tmp_path / "whole"), "student", torch.float32)
    model.save_pretrained(tmp_path / "own")
    assert set(stored(tmp_path / "own")) == {name for name, _ in model.named_parameters()}
    assert taken_from(str(tmp_path / "own"), "student") is None
    assert json.loads((tmp_path / "own/config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    assert torch.equal(said(load_causal_lm(str(tmp_path / "own"), "student", torch.float32)), said(model))


def test_what_the_files_lack_or_have_too_much_is_said(tmp_path, caplog):
    folder = make_whole("gemma3", tmp_path)
    (file,) = [f for f in tmp_path.glob("*.safetensors") if "language_model.model.norm.weight" in load_file(f)]
    weights = load_file(file)
    save_file(weights | {"language_model.model.layers.7.extra": torch.zeros(3)}, file, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["language_model.model.layers.7.extra"] = file.name
    index.write_text(json.dumps(listed))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    load_causal_lm(folder, "student", torch.float32)
    logger.removeHandler(caplog.handler)
    assert "1 tensors of the language model are not in its config" in caplog.text and "vision" not in caplog.text
    del weights["language_model.model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of its config \(model.norm.weight"):
        load_causal_lm(folder, "student", torch.float32)


@pytest.mark.parametrize(
    ("family", "text", "words"),
    [
        ("qwen3_vl", {"head_dim": 16}, r"Qwen3VLForCond.* \(qwen3_vl_text\) has no class of its own in transformers"),
        ("aya_vision", {"model_type": "cohere2"}, r"whose head leaves out how its language model \(cohere2\) scales"),
        ("llama4", {}, r"\(llama4_text\) keeps its layers where they are not looked for here"),
    ],
)
def test_others_are_refused_by_name_and_before_weights_are_read(family, text, words, tmp_path):
    config = AutoConfig.for_model(family, text_config=SMALL | text, vision_config=VISION, tie_word_embeddings=False)
    named = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "aya_vision": "AyaVision", "llama4": "Llama4"}
    config.architectures = [named[family]]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        load_causal_lm(str(tmp_path), "teacher", torch.float32)
    with pytest.raises(UserError, match=words):
        read_shape(str(tmp_path), "teacher")
    side = Side("teacher", "it", None, load_whole_config(str(tmp_path), "teacher"), ())
    finding = check_part(load_config(), side)
    assert finding.level == "refusal" and no_language_model(config) in str(finding)
    served = load_config(teacher="http://localhost:1", teacher_name="it")
    assert check_part(served, copy.copy(side)).level == "ok"  # its server has a class for it


def test_neither_vllm_nor_unsloth_is_asked(tmp_path):
    folder = make_whole("gemma3", tmp_path)
    assert "language model alone" in choose_engine(load_config(student=folder), CPU, torch.float32, "peft").why
    with pytest.raises(UserError, match="of a Gemma3ForConditionalGeneration the language model alone is taken here"):
        choose_engine(load_config(student=folder, engine="vllm"), CPU, torch.float32, "peft")
    assert taken_from(make_family("gemma3_text", tmp_path / "text"), "student") is None


def make_pair(family: str, folder: Path) -> None:
    """A student and a teacher with the bundled tokenizer."""
    sizes = {"vocab_size": 512, "eos_token_id": 474, "pad_token_id": 474, "max_position_embeddings": 512}
    for seed, role in enumerate(("student", "teacher")):
        make_whole(family, folder / role, seed, **sizes)
        AutoTokenizer.from_pretrained(TINY / "student").save_pretrained(folder / role)
    (folder / "student/preprocessor_config.json").write_text('{"size": 16}')
    # A tensor without a dimension, as layers that clip keep for a bound.
    index = folder / "student/model.safetensors.index.json"
    listed = json.loads(index.read_text())
    file = folder / "student" / next(iter(listed["weight_map"].values()))
    save_file(load_file(file) | {"vision_tower.bound": torch.tensor(0.5)}, file, {"format": "pt"})
    listed["weight_map"]["vision_tower.bound"] = file.name
    index.write_text(json.dumps(listed))


def test_a_run_goes_back_into_the_whole(tmp_path):
    make_pair("gemma3", tmp_path)
    flags = ["--student", "student", "--teacher", "teacher", "--data", DATA, "--steps", "3", "--batch-size", "4"]
    flags += ["--max-new-tokens", "12", "--max-prompt-tokens", "200", "--lr", "1e-2", "--reward", "log_ratio"]
    flags += ["--lora-rank", "4", "--hold-out", "2", "--eval-max-new-tokens", "4", "--output", "run"]
    done = run_train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a Gemma3ForConditionalGeneration, the language model alone is loaded") == 2
    assert "run --to adapter (to load on the whole Gemma3ForConditionalGeneration)" in done.stdout
    done = run_evaluate("--model", "run", "--problems", "2", "--n", "1", "--max-new-tokens", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_exports(tmp_path, "run")
    done = run_export("run", "--to", "merged-4bit", cwd=tmp_path)
    said = "the base is a Gemma3ForConditionalGeneration; what is written is its language model alone"
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "run/export/merged-4bit/config.json").read_text())["model_type"] == "gemma3_text"


def test_an_adapter_goes_back_into_a_whole_whose_names_differ(tmp_path):
    make_pair("qwen3_5", tmp_path)
    student = load_student(load_config(student=str(tmp_path / "student"), lora_rank=2), CPU, torch.float32)
    for name, parameter in student.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    student.model.save_pretrained(tmp_path / "run/adapter")
    check_exports(tmp_path, "run/adapter")


def check_exports(folder: Path, source: str) -> None:
    """Exports both ways, and opens what was written by transformers, by PEFT, and again here."""
    base = str(folder / "student")

    def ours(name: str, base: str | None = None) -> torch.Tensor:
        return said(load_target(find_target(str(folder / name), base), 16, CPU, torch.float32).model)

    for to in ("merged-16bit", "adapter"):
        done = run_export(source, "--to", to, "--output", to, cwd=folder)
        assert done.returncode == 0 and "proven" in done.stdout, done.stderr
    live = ours("run/adapter", base)
    whole = AutoModelForImageTextToText.from_pretrained(base)
    assert (live - said(whole)).abs().max() > 0.1  # it was moved
    merged = AutoModelForImageTextToText.from_pretrained(folder / "merged-16bit")
    adapted = PeftModel.from_pretrained(whole, folder / "adapter")
    for again in (said(merged), said(adapted), ours("merged-16bit"), ours("adapter", base)):
        torch.testing.assert_close(again, live, atol=1e-4, rtol=0)
    by_vllm = [vllm_unfit_for(find_target(str(folder / name), base), 16) for name in ("adapter", "run/adapter")]
    assert "named as in a whole checkpoint" in by_vllm[0] and by_vllm[1] is None
    trained = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert trained and all("language_model" in name for name in trained)
    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert settings["auto_mapping"]["base_model_class"] == type(whole).__name__ and settings["task_type"] is None

    before, after = stored(folder / "student"), stored(folder / "merged-16bit")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name][1], after[name][1])}
    assert {name for name in changed} == {theirs for theirs in before if is_adapted(theirs, trained)}
    assert all(before[name][0] == after[name][0] for name in before)  # in the same file
    assert after["vision_tower.bound"][1].shape == () and after["vision_tower.bound"][1] == 0.5
    for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
        assert (folder / "merged-16bit" / name).read_bytes() == (folder / "student" / name).read_bytes()
    assert "AutoModelForImageTextToText" in (folder / "adapter/README.md").read_text()


def is_adapted(tensor: str, trained: list[str]) -> bool:
    """Whether a tensor of the files has an adapter, by the names of the adapter's in the whole."""
    module = own_name(tensor).removesuffix(".weight")
    return own_name(tensor) != tensor and any(
        own_name(n.removeprefix(PREFIX)).startswith(f"{module}.lora_") for n in trained
    )
