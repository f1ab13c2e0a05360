"""Bad inputs of the third kind: folders of models and adapters."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusing import EVALUATE, TINY, TRAIN, Case, Make
from table_data import HTML, POINTER

ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "bundled-student", "bias": "none",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "falcon": {
        "model_type": "falcon",
        "vocab_size": 479,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 479,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": 512,
        "bos_token_id": 474,
        "eos_token_id": 474,
    },
    "bert": {
        "model_type": "bert",
        "vocab_size": 479,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    },
    "t5": {"model_type": "t5", "vocab_size": 479, "d_model": 64, "num_layers": 1, "num_heads": 4},
    "vit": {"model_type": "vit"},
    "whisper": {"model_type": "whisper"},
    "mamba": {"model_type": "mamba", "vocab_size": 479, "hidden_size": 64, "num_hidden_layers": 1},
}


def model(change: Callable[[Path], Any], role: str = "student") -> Make:
    """Returns what copies a bundled model to m/ and changes it."""

    def make(folder: Path) -> None:
        shutil.copytree(TINY / role, folder / "m")
        change(folder / "m")

    return make


def setting(file: str, **values: Any) -> Make:
    """Changes keys of one of a model's JSON files; None removes one."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return model(change)


def text(file: str, content: str | bytes) -> Make:
    return model(lambda f: (f / file).write_bytes(content.encode() if isinstance(content, str) else content))


def without(*names: str) -> Make:
    return model(lambda f: [(f / name).unlink() for name in names])


def instead(name: str, content: str | bytes) -> Make:
    """Puts a file in the place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return model(change)


def weights(change: Callable[[dict], Any], file: str = "model.safetensors") -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return changed


def family(config: dict[str, Any]) -> Make:
    """A model of another family, whose weights are the student's."""
    return model(lambda f: (f / "config.json").write_text(json.dumps(config)))


def pickle(code: str) -> bytes:
    """A pickle that runs `code`, in a zip as torch.save writes it."""
    import io
    import zipfile

    body = b"c__builtin__\nexec\n(V" + code.encode() + b"\ntR."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return out.getvalue()


def not_finite(tensors: dict) -> None:
    tensors["model.norm.weight"][0] = float("nan")


def no_layer(tensors: dict) -> None:
    del tensors["model.layers.0.mlp.down_proj.weight"]


def other_shape(tensors: dict) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name][:, :5].contiguous()


def bad_merges(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].append(["zzzz", "qqqq"])
    path.write_text(json.dumps(content))


RAN = "open('it-ran','w')"
# What is changed of the student, and words of the message.
MODELS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "no weights": (without("model.safetensors"), ("m",)),
    "weights that are a pointer": (text("model.safetensors", POINTER), ("git-lfs", "git lfs pull")),
    "weights that are HTML": (text("model.safetensors", HTML), ("HTML",)),
    "weights that are nothing": (text("model.safetensors", b""), ("m",)),
    "weights with an enormous header": (text("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), ("m",)),
    "weights cut": (model(lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9000])), ("m",)),
    "weights that are NaN": (model(weights(not_finite)), ("not finite",)),
    "weights that lack a tensor": (model(weights(no_layer)), ("lack",)),
    "weights of another shape": (model(weights(other_shape)), ("m",)),
    "pickled weights": (instead("pytorch_model.bin", b"\x80\x04N."), ("m",)),
    "pickled code": (instead("pytorch_model.bin", pickle(RAN)), ("m",)),
    "a pointer to pickled weights": (instead("pytorch_model.bin", POINTER), ("git-lfs",)),
    "an index without its files": (instead("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}'), ("m",)),
    "an index that is none": (instead("model.safetensors.index.json", "[]"), ("m",)),
    "an index that leads out": (instead("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "../../x"}}'), ("m",)),
    "no config": (without("config.json"), ("m",)),
    "a config that is nothing": (text("config.json", ""), ("m",)),
    "a config that is a list": (text("config.json", "[]"), ("m",)),
    "a config that is a pointer": (text("config.json", POINTER), ("git-lfs",)),
    "a config that is HTML": (text("config.json", HTML), ("HTML",)),
    "a config that is not UTF-8": (text("config.json", b"\xff\xfe{"), ("m",)),
    "a config of brackets": (text("config.json", "[" * 100_000), ("m",)),
    "an unknown family": (setting("config.json", model_type="no_such"), ("m",)),
    "no family": (setting("config.json", model_type=None), ("m",)),
    "a family that is a list": (setting("config.json", model_type=["qwen3"]), ("m",)),
    "a width that is a text": (setting("config.json", hidden_size="wide"), ("m",)),
    "a width of -1": (setting("config.json", hidden_size=-1), ("m",)),
    "a width of nothing": (setting("config.json", hidden_size=0), ("m",)),
    "an enormous width": (setting("config.json", hidden_size=2**40), ("m",)),
    "an enormous vocabulary": (setting("config.json", vocab_size=2**40), ("m",)),
    "a vocabulary of 10": (setting("config.json", vocab_size=10), ("m",)),
    "an enormous depth": (setting("config.json", num_hidden_layers=10**9), ("m",)),
    "heads that don't fit": (setting("config.json", num_attention_heads=7, num_key_value_heads=3), ("m",)),
    "no heads": (setting("config.json", num_attention_heads=0), ("m",)),
    "an unknown activation": (setting("config.json", hidden_act="no_such"), ("m",)),
    "rope of an unknown kind": (setting("config.json", rope_parameters={"rope_type": "x", "rope_theta": 1e4}), ("m",)),
    "code of its own": (setting("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}), ("m",)),
    "layer types that don't fit": (setting("config.json", layer_types=["full_attention"]), ("m",)),
    "positions that are a text": (setting("config.json", max_position_embeddings="many"), ("m",)),
    "GPTQ": (setting("config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}), ("GPTQ",)),
    "AWQ": (setting("config.json", quantization_config={"quant_method": "awq", "bits": 4}), ("AWQ",)),
    "a quantisation that is a text": (setting("config.json", quantization_config="4bit"), ("m",)),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), ("tokenizer", "m")),
    "no tokenizer.json": (without("tokenizer.json"), ("tokenizer", "m")),
    "a tokenizer that is nothing": (text("tokenizer.json", ""), ("tokenizer",)),
    "a tokenizer that is a pointer": (text("tokenizer.json", POINTER), ("git-lfs",)),
    "a tokenizer of brackets": (text("tokenizer.json", "[" * 10_000), ("tokenizer",)),
    "a tokenizer without a model": (text("tokenizer.json", '{"version": "1.0"}'), ("tokenizer",)),
    "bad merges": (model(bad_merges), ("tokenizer",)),
    "tokenizer settings that are a list": (text("tokenizer_config.json", "[]"), ("tokenizer",)),
    "a stop that is a list": (setting("generation_config.json", eos_token_id=[[1]]), ("eos_token_id",)),
    "a stop that is a text": (setting("generation_config.json", eos_token_id="</s>"), ("eos_token_id",)),
    "a stop that is outside": (setting("generation_config.json", eos_token_id=10**6), ("stop ids",)),
    "a generation config that is nothing": (text("generation_config.json", ""), ("generation_config.json",)),
    "a generation config that is a list": (text("generation_config.json", "[]"), ("generation_config.json",)),
    "a template that fails": (text("chat_template.jinja", "{{ nothing.here }}"), ("chat template",)),
    "a template that is broken": (text("chat_template.jinja", "{% for"), ("chat template",)),
    "a template that reads files": (text("chat_template.jinja", "{% include '/etc/passwd' %}"), ("chat template",)),
    "a template that runs code": (
        text("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), ("chat template",)),
    "a template without an end": (text("chat_template.jinja", "{% for i in range(10**9) %}x{% endfor %}"), ("chat template",)),
    "a template of a billion letters": (text("chat_template.jinja", "{{ 'x' * 10**10 }}"), ("chat template",)),
    **{f"a {name}": (family(config), ("m",)) for name, config in FAMILIES.items()},
}  # fmt: skip


def adapter(change: Callable[[Path], Any] = lambda f: None, rank: int = 4, **settings: Any) -> Make:
    """Returns what writes an adapter of the bundled student to a/ and changes it."""

    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        path = folder / "a"
        path.mkdir()
        config = {**ADAPTER, **settings}
        (path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
        size = json.loads((TINY / "student/config.json").read_text())
        out = {"q_proj": size["num_attention_heads"], "v_proj": size["num_key_value_heads"]}
        tensors = {}
        for layer in range(size["num_hidden_layers"]):
            for name, heads in out.items():
                begin = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                tensors[f"{begin}.lora_A.weight"] = torch.zeros(rank, size["hidden_size"])
                tensors[f"{begin}.lora_B.weight"] = torch.zeros(heads * size["head_dim"], rank)
        save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
        change(path)

    return make


def adapter_text(file: str, content: str | bytes) -> Make:
    return adapter(lambda f: (f / file).write_bytes(content.encode() if isinstance(content, str) else content))


def pickled_adapter(content: bytes) -> Make:
    def change(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(content)

    return adapter(change)


def broken_adapter(tensors: dict) -> None:
    tensors[sorted(tensors)[0]][0, 0] = float("inf")


ADAPTERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "settings that are nothing": (adapter_text("adapter_config.json", ""), ("adapter_config.json",)),
    "settings that are a list": (adapter_text("adapter_config.json", "[]"), ("adapter_config.json",)),
    "settings that are a pointer": (adapter_text("adapter_config.json", POINTER), ("git-lfs",)),
    "settings of brackets": (adapter_text("adapter_config.json", "[" * 100_000), ("adapter_config.json",)),
    "no weights": (adapter(lambda f: (f / "adapter_model.safetensors").unlink()), ("adapter_model.safetensors",)),
    "weights that are a pointer": (adapter_text("adapter_model.safetensors", POINTER), ("git-lfs",)),
    "weights that are nothing": (adapter_text("adapter_model.safetensors", b""), ("a",)),
    "weights that are HTML": (adapter_text("adapter_model.safetensors", HTML), ("HTML",)),
    "weights not finite": (adapter(weights(broken_adapter, "adapter_model.safetensors")), ("not finite",)),
    "weights that are none": (adapter(weights(dict.clear, "adapter_model.safetensors")), ("a",)),
    "pickled code": (pickled_adapter(pickle(RAN)), ("a",)),
    "a pickle cut": (pickled_adapter(b"\x80\x04N"), ("a",)),
    "a pointer to a pickle": (pickled_adapter(POINTER.encode()), ("git-lfs",)),
    "another rank": (adapter(rank=3), ("tensors differ",)),
    "a rank that is a text": (adapter(r="4"), ("r, a whole number",)),
    "a rank of nothing": (adapter(r=0), ("a",)),
    "a rank of -1": (adapter(r=-1), ("a",)),
    "an enormous rank": (adapter(r=10**9), ("r, a whole number",)),
    "a large rank": (adapter(r=10**6), ("r, a whole number",)),
    "a rank pattern that is a list": (adapter(rank_pattern=[1]), ("rank_pattern",)),
    "a rank pattern of texts": (adapter(rank_pattern={"q_proj": "x"}), ("rank_pattern",)),
    "an alpha that is a text": (adapter(lora_alpha="x"), ("lora_alpha",)),
    "an alpha that is null": (adapter(lora_alpha=None), ("lora_alpha",)),
    "an infinite alpha": (adapter(lora_alpha=float("inf")), ("not finite",)),
    "another type": (adapter(peft_type="IA3"), ("only LoRA",)),
    "an unknown type": (adapter(peft_type="X"), ("only LoRA",)),
    "another task": (adapter(task_type="SEQ_CLS"), ("a",)),
    "an unknown task": (adapter(task_type="X"), ("a",)),
    "targets that are not there": (adapter(target_modules=["c_attn"]), ("a",)),
    "targets that are a number": (adapter(target_modules=5), ("target_modules",)),
    "targets that are a broken pattern": (adapter(target_modules="(.*"), ("does not fit",)),
    "targets that are none": (adapter(target_modules=[]), ("a",)),
    "modules that are a number": (adapter(modules_to_save=5), ("modules_to_save",)),
    "a setting of another version": (adapter(no_such_setting=1, use_x=True), ()),
    "bias of an unknown kind": (adapter(bias="x"), ("a",)),
    "LoftQ": (adapter(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), ()),
    "an unknown start": (adapter(init_lora_weights="no_such"), ()),
    "no base": (adapter(base_model_name_or_path=None), ("--base",)),
    "a base that is a number": (adapter(base_model_name_or_path=5), ("base_model_name_or_path",)),
    "a base that is gone": (adapter(base_model_name_or_path="/gone/model"), ("--base",)),
    "a base on the hub": (adapter(base_model_name_or_path="no/such-model"), ("no/such-model",)),
    "Unsloth's 4-bit base": (adapter(base_model_name_or_path="unsloth/qwen3-0.6b-unsloth-bnb-4bit"), ("unsloth",)),
    "a revision that is a list": (adapter(revision=[1]), ("revision",)),
    "trained tokens": (adapter(trainable_token_indices=[5, 6]), ()),
    "layers that are replicated": (adapter(layer_replication=[[0, 9]]), ()),
    "layers that are not there": (adapter(layers_to_transform=[99]), ()),
    "a generation config of texts": (adapter(lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}')), ("eos_token_id",)),
    "a tokenizer that is nothing": (adapter(lambda f: [(f / "tokenizer_config.json").write_text("{}"), (f / "tokenizer.json").write_text("")]), ("tokenizer",)),
    "a reference that is nothing": (adapter(lambda f: (f / "reference.json").write_text("")), ()),
    "LoRA-GA": (adapter(init_lora_weights="lora_ga"), ("began with LoRA-GA, which changed its base",)),
}  # fmt: skip
WORKS = {  # by evaluate, what the table of exports refuses
    "a setting of another version", "a reference that is nothing", "an unknown task", "another task", "an unknown start",
}  # fmt: skip


def cases() -> list[Case]:
    """Returns the models and adapters that are refused."""
    found = []
    for name, (make, says) in MODELS.items():
        found.append(Case(f"student: {name}", f"{TRAIN} --student m", says, make))
    early = without("model.safetensors")  # which is found when weights are loaded
    for flags, says in (
        ("--lora-targets nothing", "no module named nothing"),
        ("--lora-targets norm", "PEFT can't"),
        ("--modules-to-save nothing", "no module named nothing"),
        ("--output /proc/out", "can't write"),
    ):
        found.append(Case(f"before any weights: {flags}", f"{TRAIN} --student m {flags}", (says,), early))
    for name in list(MODELS)[::3]:
        make, says = MODELS[name]
        found.append(Case(f"model: {name}", f"{EVALUATE} --model m", (), make))
        if "template" not in name:  # prompts follow the student's
            found.append(Case(f"teacher: {name}", f"{TRAIN} --teacher m", (), make))
    for name, (make, says) in ADAPTERS.items():
        if name not in WORKS:
            found.append(Case(f"adapter: {name}", f"{EVALUATE} --model a", says, make))
    for name in list(ADAPTERS)[::3]:
        if name == "a setting of another version":  # PEFT warns, and it works
            continue
        found.append(Case(f"export: {name}", "export a --to merged-16bit --output out", (), ADAPTERS[name][0]))
    return found
