"""What export refuses: bad input, and models that are not what was trained. One message, exit code 2, nothing written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run_export
from safetensors.torch import load_file, save_file

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.gguf_vocab import pre_tokenizer
from poweropd_lite.export.prepare import prepare_job
from poweropd_lite.export.proof import EXACT, check_merge, exact
from poweropd_lite.export.settings import load_export_config
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.probe import noise, probe, probe_texts

BASE = Path(model_path("bundled", "student"))
BAD = [
    ([], ["nothing to export", "python -m poweropd_lite.export runs/power10-seed0"]),
    (["a"], ["no format to export to", "adapter, merged-16bit, merged-4bit, gguf"]),
    (["a", "--to", "onnx"], ["to: found 'onnx'", "'merged-16bit'"]),
    (["nowhere", "--to", "adapter"], ["no model config for the model at 'nowhere'", "no folder of that name is here"]),
    (["./nowhere", "--to", "adapter"], ["no folder ./nowhere"]),
    (["strange", "--to", "adapter"], ["no run folder (config.yaml), no adapter"]),
    (["a", "--model", "b", "--to", "adapter"], ["found both a and --model b"]),
    (["a", "--to", "gguf", "--gguf-type", "q4_k_m"], ["q4_k_m is none of f32, f16, bf16, q8_0", "--llama-cpp"]),
    (["a", "--to", "gguf", "--gguf-type", "q4_k_m", "--llama-cpp", "strange"], ["strange has no convert_hf_to_gguf.py"]),
    (["a", "--to", "gguf", "--gguf-type", "q4_k_m", "--llama-cpp", "checkout"], ["no built llama-quantize", "cmake"]),
    (["a", "--to", "adapter", "--gguf-type", "f16"], ["are of gguf, and --to is adapter"]),
    (["a", "--to", "merged-4bit", "--dtype", "float16"], ["dtype float16 is of merged-16bit"]),
    (["a", "--to", "adapter", "--output", "file"], ["file is a file"]),
    (["a", "--to", "adapter", "--output", "strange"], ["strange is not empty and holds no export"]),
    (["a", "--to", "adapter", "--output", "a"], ["a is not empty"]),
    (["a", "--to", "adapter", "--output", "."], ["is the folder you are in"]),
    (["a", "--to", "adapter", "--output", "file/x"], ["file is a file"]),
    (["a", "--to", "adapter", "--base", "Qwen/Qwen3-0.6B-Base"], ["was trained on", "--base is Qwen/Qwen3-0.6B-Base"]),
    (["bundled-student", "--to", "adapter"], ["is a whole model", "--to merged-16bit"]),
    (["a", "--to", "adapter", "--push", "name"], ["push: found 'name'", "ORG/NAME"]),
    (["a", "--to", "adapter", "--push", "me/name"], ["HF_TOKEN"]),
    (["a", "--to", "adapter", "--private"], ["private is of an upload"]),
    (["a", "--to", "adapter", "--quant", "4"], ["unknown argument '--quant'"]),
    (["a", "--to", "adapter", "b"], ["unknown argument 'b'"]),
]  # fmt: skip


@pytest.fixture
def places(trained, tmp_path) -> Path:
    """A folder with an adapter `a`, a folder that is nothing, a file and a checkout that was not built."""
    shutil.copytree(trained / "run" / "adapter", tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()  # which alone would refuse what is changed here
    for name in ("strange/file", "checkout/convert_hf_to_gguf.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    (tmp_path / "file").write_text("")
    return tmp_path


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(places: Path, *flags: str) -> str:
    """Runs the command, which must refuse and leave nothing; returns its message."""
    before = listing(places)
    done = run_export(*flags, cwd=places)
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert "Traceback" not in done.stderr and listing(places) == before
    return message


@pytest.mark.parametrize("flags, words", BAD, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_message_and_exit_code_2(places, monkeypatch, flags, words):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    message = refused(places, *flags)
    assert all(word in message for word in words), message


def zeroed(weights: dict) -> dict:
    return {name: torch.zeros_like(w) if "lora_B" in name else w for name, w in weights.items()}


def one_layer_zeroed(weights: dict) -> dict:
    return {n: torch.zeros_like(w) if "layers.1.mlp.down_proj.lora_B" in n else w for n, w in weights.items()}


def one_layer_dropped(weights: dict) -> dict:
    return {name: w for name, w in weights.items() if "layers.1." not in name}


def not_a_number(weights: dict) -> dict:
    name = next(name for name in weights if "layers.2.mlp.up_proj.lora_B" in name)
    return weights | {name: torch.full_like(weights[name], torch.nan)}


NOT_WHAT_IT_SAID = "do not say what they said at the end of training"
FAULTS = [(zeroed, NOT_WHAT_IT_SAID), (one_layer_zeroed, NOT_WHAT_IT_SAID), (one_layer_dropped, "14 of 42 tensors differ"),
          (not_a_number, "not finite")]  # fmt: skip


@pytest.mark.parametrize("to", ["adapter", "merged-16bit"])
@pytest.mark.parametrize("fault, words", FAULTS)
def test_an_adapter_that_was_changed_is_refused(places, to, fault, words):
    file = places / "a" / "adapter_model.safetensors"
    save_file(fault(load_file(file)), file)
    assert words in refused(places, "a", "--to", to, "--output", "out")


@pytest.mark.parametrize("setting, value", [("lora_alpha", 64), ("use_rslora", True), ("r", 8)])
def test_an_adapter_with_another_alpha_or_rank_is_refused(places, setting, value):
    file = places / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    message = refused(places, "a", "--to", "merged-16bit", "--output", "out")
    assert (NOT_WHAT_IT_SAID if setting != "r" else "tensors differ") in message


def test_an_adapter_on_another_base_of_the_same_name_is_refused(places):
    shutil.copytree(BASE, places / "student")
    weights = load_file(BASE / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name] * 1.02}, places / "student" / "model.safetensors", {"format": "pt"})
    message = refused(places, "a", "--to", "merged-16bit", "--base", str(places / "student"), "--output", "out")
    assert NOT_WHAT_IT_SAID in message and "--base" in message


def test_truncated_files_are_refused(places):
    file = places / "a" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "can't be read" in refused(places, "a", "--to", "adapter", "--output", "out")
    file.write_bytes(whole)
    shutil.copytree(BASE, places / "student")
    base = places / "student" / "model.safetensors"
    base.write_bytes(base.read_bytes()[:100_000])
    message = refused(places, "a", "--to", "merged-16bit", "--base", str(places / "student"), "--output", "out")
    assert "model.safetensors can't be read" in message and "whole" in message
    (places / "a" / "reference.json").write_text("{}")
    assert "reference.json can't be read" in refused(places, "a", "--to", "adapter", "--output", "out")


@pytest.mark.parametrize("fault", ["tensor changed", "tensor absent"])
def test_a_written_model_that_reads_back_otherwise_is_not_handed_over(places, monkeypatch, fault):
    """The disk's fault, or ours: between writing and reading back, a tensor changes."""
    from poweropd_lite.export import export, folders

    honest = folders.write_merged

    def faulty(plan, folder, *rest):
        honest(plan, folder, *rest)
        weights = load_file(folder / "model.safetensors")
        name = "model.layers.2.mlp.up_proj.weight"
        if fault == "tensor changed":
            weights[name][5, 7] += 0.01
        else:
            del weights[name]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(folders, "write_merged", faulty)
    with pytest.raises(
        UserError, match="other numbers than were written" if fault == "tensor changed" else "other tensors"
    ):
        export(load_export_config(model=places / "a", to="merged-16bit", output=places / "out"), say=lambda _: None)
    assert not (places / "out").exists() and not list(places.glob(".out*"))


def test_a_merge_by_another_formula_is_not_handed_over(places, monkeypatch):
    from poweropd_lite.export import export
    from poweropd_lite.models.merge import Change

    monkeypatch.setattr(
        Change, "rows", lambda self, base, rows: base.float() + 1.01 * self.scale * self.left[rows] @ self.right
    )
    with pytest.raises(UserError, match="do not say what the live adapter says"):
        export(load_export_config(model=places / "a", to="gguf", output=places / "out"), say=lambda _: None)
    assert not (places / "out").exists() and not list(places.glob(".out*"))


@pytest.mark.parametrize("setting, value, words", [
    ("use_dora", True, "tensors differ"), ("bias", "all", "biases"), ("peft_type", "IA3", "only LoRA"), ("r", "four", "no adapter's"),
    ("init_lora_weights", "lora_ga", "began with LoRA-GA, which changed its base, too"),
])  # fmt: skip
def test_adapters_that_a_merge_can_t_express_are_refused(places, setting, value, words):
    file = places / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    assert words in refused(places, "a", "--to", "merged-16bit", "--output", "out")


@pytest.mark.parametrize("start", ["olora", "lora_ga"])
def test_an_adapter_that_moved_its_base_is_not_merged_into_the_base_as_it_is(student_model, start):
    from peft import LoraConfig, get_peft_model

    from poweropd_lite.models.merge import changes_of

    model = get_peft_model(student_model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start))
    with pytest.raises(UserError, match=f"init_lora_weights {start}, which changes the base too"):
        changes_of(model)


def change_model(folder, change):
    """Makes the bundled student another model by its config; None takes a key out."""
    shutil.copytree(BASE, folder)
    settings = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if value is not None})
    )


@pytest.mark.parametrize("change, words", [
    ({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}, "its type is phi3"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "positions are of type yarn"),
    ({"hidden_act": "gelu"}, "its activation is gelu"),
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "layer_types": None, "use_sliding_window": None,
      "sliding_window": 64}, "have a sliding window"),
    ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "layer_types": None}, "norm_topk_prob"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised already"),
])  # fmt: skip
def test_models_that_gguf_can_t_be_written_of_are_refused_before_loading(tmp_path, change, words):
    change_model(tmp_path / "m", change)
    with pytest.raises(UserError, match=words):
        prepare_job(load_export_config(model=tmp_path / "m", to="gguf", output=tmp_path / "out"))


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_known(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    assert pre_tokenizer(AutoTokenizer.from_pretrained(BASE)) == ("qwen2", None)
    text = (BASE / "tokenizer.json").read_text()
    for old, new, words in [
        ("p{N}|", "p{N}{1,2}|", "a pattern that is not known here"),
        ('"NFC"', '"NFKC"', "rewrites text"),
        ("p{N}|", "p{N}{1,3}|", "merges whole words"),
        ('"use_regex": false', '"use_regex": true', "splits or pads text once more"),
    ]:
        assert old in text
        (tmp_path / "tokenizer.json").write_text(text.replace(old, new))
        name, fault = pre_tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")))
        assert name is None and words in fault


@pytest.mark.parametrize("change, words", [
    ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "layer_types": None}, "norm_topk_prob"),
    ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "rope_parameters": None}, "every sixth layer"),
    ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"] * 3}, "every second layer"),
    ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "layer_types": None}, "scaled by 256"),
])  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_not_given_to_its_converter(tmp_path, change, words):
    change_model(tmp_path / "m", change)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "convert_hf_to_gguf.py").touch()
    flags = {"to": "gguf", "llama_cpp": str(tmp_path / "checkout"), "output": tmp_path / "out"}
    with pytest.raises(UserError, match=f"llama.cpp would misread this model: .*{words}"):
        prepare_job(load_export_config(model=tmp_path / "m", **flags))


def test_a_full_disk_is_found_before_the_work(places, monkeypatch):
    import shutil as disk

    usage = type(disk.disk_usage("/"))
    monkeypatch.setattr("poweropd_lite.export.prepare.shutil.disk_usage", lambda _: usage(10, 9, 1 << 20))
    with pytest.raises(UserError, match=r"needs about 0\.06 GiB, and the disk of .* has 0\.00 free"):
        prepare_job(load_export_config(model=places / "a", to="merged-16bit", output=places / "out"))


def test_overwrite_replaces_only_an_export(places):
    message = refused(places, "a", "--to", "adapter", "--output", "strange", "--overwrite")
    assert "holds no export" in message


def test_nothing_of_the_user_s_is_deleted(places):
    """Hidden neighbours, files beside an earlier export, a folder behind a link, new parents of a refused export."""
    for name in (".out.tmp", ".out.old"):
        (places / name).mkdir()
        (places / name / "thesis").write_text("mine")
    (places / "real").mkdir()
    (places / "out").symlink_to("real")
    done = run_export("a", "--to", "adapter", "--output", "out", cwd=places)
    assert done.returncode == 0, done.stderr
    assert (places / "out").is_symlink() and (places / "real" / "export.json").exists()
    (places / "real" / "thesis").write_text("mine")
    assert "holds 1 files that its export did not write, or that were changed since (for one thesis)" in refused(
        places, "a", "--to", "adapter", "--output", "out", "--overwrite"
    )
    (places / "real" / "thesis").unlink()
    card = (places / "real" / "README.md").read_text()
    (places / "real" / "README.md").write_text(card + "My own words.")
    assert "changed since (for one README.md)" in refused(
        places, "a", "--to", "adapter", "--output", "out", "--overwrite"
    )
    (places / "real" / "README.md").write_text(card)
    assert run_export("a", "--to", "adapter", "--output", "out", "--overwrite", cwd=places).returncode == 0
    assert all((places / name / "thesis").read_text() == "mine" for name in (".out.tmp", ".out.old"))
    (places / "mine").mkdir()
    (places / "mine" / "export.json").write_text("{}")
    assert "holds no export" in refused(places, "a", "--to", "adapter", "--output", "mine", "--overwrite")
    (places / "a" / "adapter_model.safetensors").write_bytes(b"cut")
    refused(places, "a", "--to", "adapter", "--output", "new/deep/out")


def test_what_is_in_an_export_s_folders_is_its_own_or_the_user_s(places):
    """A tokenizer with several chat templates keeps all but one of them in a folder."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (places / "a" / "additional_chat_templates").mkdir()
    (places / "a" / "additional_chat_templates" / "tool_use.jinja").write_text(template)
    flags = ["a", "--to", "adapter", "--output", "out", "--overwrite"]
    assert run_export(*flags, cwd=places).returncode == 0
    report = json.loads((places / "out" / "export.json").read_text())
    name = "additional_chat_templates/tool_use.jinja"
    assert report["files"][name] == (places / "out" / name).stat().st_size and name in report["sha256"]
    again = run_export(*flags, cwd=places)
    assert again.returncode == 0 and name in again.stdout, again.stderr
    for mine in ("additional_chat_templates/thesis", "thesis/chapter"):
        (places / "out" / mine).parent.mkdir(exist_ok=True)
        (places / "out" / mine).write_text("mine")
        assert f"(for one {mine.removesuffix('/chapter')})" in refused(places, *flags)
        (places / "out" / mine).unlink()
    assert "(for one thesis)" in refused(places, *flags)  # an empty folder
    (places / "out" / "thesis").rmdir()
    (places / "out" / name).write_text(template.replace("content", "CONTENT"))  # as long
    wrong = refused(places, "out", "--to", "merged-16bit", "--output", "m")
    assert f"{name} does not hold what export.json says" in wrong
    listed = {"../a/adapter_config.json": "0" * 64}
    (places / "out" / "export.json").write_text(json.dumps(report | {"sha256": listed}))
    assert "outside of the folder" in refused(places, "out", "--to", "merged-16bit", "--output", "m")


def test_what_came_to_lie_there_meanwhile_is_not_replaced(tmp_path):
    from poweropd_lite.export.handover import handed_over

    with pytest.raises(UserError, match="holds no export"), handed_over(tmp_path / "new" / "out", False) as folder:
        (folder / "weights").write_text("w")
        (tmp_path / "new" / "out").mkdir()
        (tmp_path / "new" / "out" / "thesis").write_text("mine")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_broken_token_is_not_printed(places, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretAAA\nsecretBBB")
    message = refused(places, "a", "--to", "adapter", "--push", "me/x")
    assert "HF_TOKEN" in message and "secret" not in message


def test_an_effect_that_is_lost_or_doubled_is_no_proof():
    from poweropd_lite.export.proof import check_export
    from poweropd_lite.models.probe import Probe

    def said(*values):
        return Probe([[1]], [[[0, 1]]], [[list(values)]])

    base, live, notes = said(-1.0, -2.0), said(-1.01, -1.98), []
    # The effect is (-0.01, 0.02), the export's (-0.011, 0.019): (0.00011 + 0.00038) / 0.0005.
    assert check_export(said(-1.011, -1.981), live, base, "bfloat16", notes)["effect_kept"] == pytest.approx(0.98)
    for lost in (base, said(-1.02, -1.96), said(-0.99, -2.02)):  # none of it, twice, the other way round
        with pytest.raises(UserError, match="of what the adapter changes"):
            check_export(lost, live, base, "bfloat16", notes)
    noisy = check_export(said(-1.3, -2.3), live, base, "nf4", notes)
    assert noisy["verdict"].startswith("within the format's limits, but") and "moves log-probs by" in notes[-1]


def test_what_float32_may_differ_by_follows_the_model_s_own_noise(student_model, pair):
    """Measured on one text against sums in float64: a millionth of a nat for the bundled student, far under the fixed limit."""
    live = probe(student_model, probe_texts(pair.tokenizer))
    mean, largest = noise(student_model, live)
    assert 1e-8 < mean < 1e-5 and mean < largest < 1e-4
    assert exact((mean, largest))[0] == EXACT[0] and exact((mean, largest))[1] < 2 * EXACT[1]
    assert exact((0.0, 0.0)) == EXACT and exact((1.4e-5, 2e-4)) == pytest.approx((7e-5, 1e-3))
    shifted = replace(live, logprobs=[[[x + 3e-5 for x in row] for row in text] for text in live.logprobs])
    assert check_merge(shifted, live, live, (1.4e-5, 2e-4)).mean == pytest.approx(3e-5, rel=0.01)
    with pytest.raises(UserError, match="do not say what the live adapter says"):
        check_merge(shifted, live, live, (mean, largest))
