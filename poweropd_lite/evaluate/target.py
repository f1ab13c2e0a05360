"""What is to be evaluated: a run folder, an adapter, a whole model or a hub id, found and checked before it is loaded.

Its stop ids are those of its tokenizer, its generation config and its chat template's end of turn: a base model taught by a
chat model ends with either.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.models.loading import (
    load_causal_lm,
    load_model_config,
    load_tokenizer,
    model_path,
    nf4,
    stay_unpacked,
)
from poweropd_lite.models.probe import REFERENCE
from poweropd_lite.problems.prompts import end_of_turn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from poweropd_lite.models.student import Student

SHIPPED = {"bundled": "student", "bundled-student": "student", "bundled-teacher": "teacher"}
_PLACES = (
    "base_model_name_or_path",
    "_name_or_path",
    "transformers_version",
    "peft_version",
)  # no part of what a model is


@dataclass(frozen=True)
class Target:
    """A model that was found. `adapter` is None for a whole model."""

    name: str  # as typed
    base: str  # what transformers loads
    adapter: Path | None = None
    adapter_config: dict | None = None
    run: Config | None = None  # of a run folder
    run_folder: Path | None = None

    @property
    def kind(self) -> str:
        """A word for it."""
        return "run" if self.run is not None else "adapter" if self.adapter else "model"


def find_target(config: EvalConfig) -> Target:
    """Returns what `config.model` names; raises UserError where it is nothing that can be evaluated."""
    name = config.model
    if name in SHIPPED:
        if config.base is not None:
            raise UserError(f"{name} is a whole model, and --base is for adapters; leave it out")
        return Target(name, model_path(BUNDLED, SHIPPED[name]))
    path = Path(name)
    if path.is_dir():
        if (path / "config.yaml").is_file():
            return _run(path, config)
        if (path / "adapter_config.json").is_file():
            handed_over = path.resolve().name == "adapter" and (path.parent / "config.yaml").is_file()
            inside = path.parent if handed_over and config.base is None else None
            return _run(inside, config, name) if inside else _adapter(path, config)
        if (path / "config.json").is_file():
            handed_over = path.name == "model" and (path.parent / "config.yaml").is_file()
            return _run(path.parent, config, name) if handed_over else _whole(name, config)
        if (path / "trained.safetensors").is_file():
            raise UserError(
                f"{path} is a checkpoint; type --model with the run's folder, which has adapter/ when it is stopped or done"
            )
        if files := sorted(path.glob("*.gguf")):
            raise UserError(
                f"{path} holds a GGUF file ({files[0].name}), which llama.cpp reads; type --model with what it was made of"
            )
        raise UserError(
            f"{path} is no run folder (config.yaml), no adapter (adapter_config.json) and no model (config.json); "
            "type --model with one of these"
        )
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UserError(f"no folder {name}; type --model with a run folder, an adapter, a model or a hub id")
    try:
        load_model_config(name, "model", config)
    except UserError as error:
        adapter = _hub_adapter(name)
        if adapter is None:
            raise UserError(
                f"{error}\n(no folder of that name is here; shipped are bundled-student and bundled-teacher)"
            ) from None
        return _adapter(adapter, config, name)
    return _whole(name, config)


def _whole(name: str, config: EvalConfig) -> Target:
    if config.base is not None:
        raise UserError(f"{name} is a whole model, and --base is for adapters; leave it out")
    return Target(name, name)


def _run(path: Path, config: EvalConfig, name: str | None = None) -> Target:
    run = load_config(path / "config.yaml")
    if config.base is not None:
        raise UserError(f"{path} is a run, whose config.yaml names its base model ({run.student}); leave out --base")
    base = model_path(run.student, "student")
    if (path / "adapter" / "adapter_config.json").is_file():
        adapter = _adapter(path / "adapter", config, base=base)
        return Target(name or str(path), base, adapter.adapter, adapter.adapter_config, run, path)
    if (path / "model" / "config.json").is_file():
        return Target(name or str(path), str(path / "model"), run=run, run_folder=path)
    raise UserError(
        f"the run in {path} has handed over no weights yet (no adapter/ or model/): it is still training or was killed; type "
        f"python -m poweropd_lite.train --resume {path}"
    )


def _adapter(path: Path, config: EvalConfig, name: str | None = None, base: str | None = None) -> Target:
    try:
        saved = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/adapter_config.json can't be read: {error}") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("r", 8), int):
        raise UserError(f"{path}/adapter_config.json is no adapter's: it should hold settings with a whole number r")
    if saved.get("peft_type") != "LORA":
        raise UserError(f"{path} is an adapter of type {saved.get('peft_type')}, and only LoRA is supported")
    if not any((path / file).is_file() for file in ("adapter_model.safetensors", "adapter_model.bin")):
        raise UserError(f"{path} has no adapter_model.safetensors, so there are no weights to evaluate")
    named = str(saved.get("base_model_name_or_path") or "")
    if base is None and config.base is not None:
        base = model_path(BUNDLED, SHIPPED[config.base]) if config.base in SHIPPED else config.base
        if named and _last(named) != _last(base):
            raise UserError(
                f"the adapter in {path} was trained on {named}, and --base is {config.base}: on another base model it means "
                f"nothing; type --base with {_last(named)} or a copy of it in a folder of that name"
            )
    if base is None:
        shipped = Path(named).parts[-3:] == ("poweropd_lite", "tiny", "student")
        base = model_path(BUNDLED, "student") if shipped else named
        if not base or (base.startswith(("/", ".", "~")) and not Path(base).is_dir()):
            raise UserError(
                f"the adapter in {path} names {named or 'no'} base model, which is not here; type --base with its base model"
            )
    return Target(name or str(path), base, path, saved)


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _hub_adapter(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                name,
                allow_patterns=["adapter_*", "*token*", "*.jinja", "generation_config.json", REFERENCE, "export.json"],
            )
        )
    except (OSError, ValueError):  # no such adapter, or no hub: what the model's own error says is said
        return None
    return path if (path / "adapter_config.json").is_file() else None


def engine_config(target: Target, config: EvalConfig, room: int, longest: int) -> Config:
    """Returns the training config that stands for this model: what loaders and engines read their settings from.

    `room` is the most tokens that a prompt and its answer take, `longest` those of an answer.
    """
    run = target.run or Config(student=target.base, teacher=target.base)
    saved = target.adapter_config or {}
    changes = {
        "student": target.base,
        "student_bits": config.bits or (run.student_bits if target.run else 16),
        "full_finetune": target.adapter is None,
        "dtype": config.dtype,
        "engine": config.engine,
        "loader": "peft",
        "trust_remote_code": config.trust_remote_code,
        "max_prompt_tokens": room - longest,
        "max_new_tokens": longest,
        "eval_benchmarks": None,
        "gradient_checkpointing": False,
        "modules_to_save": ",".join(saved.get("modules_to_save") or []),
        "lora_rank": max([saved.get("r") or 1, *(saved.get("rank_pattern") or {}).values()]),
    }
    return run.model_copy(update=changes)


def load_target(target: Target, config: Config, device: "torch.device", dtype: "torch.dtype") -> "Student":
    """Returns the model, ready to be sampled from; raises UserError for an adapter that does not fit its base."""
    from poweropd_lite.models.student import Student

    options: dict[str, Any] = {}
    if config.student_bits == 4:
        options = {"quantization_config": nf4(dtype), "device_map": {"": device}}
    model = load_causal_lm(target.base, "model", config, dtype, **options)
    if config.student_bits == 4:
        stay_unpacked(model)
    else:
        model = model.to(device)
    if target.adapter is not None:
        model = _with_saved_adapter(model, target)
    return Student(model.eval(), device, dtype)


def _with_saved_adapter(base: "PreTrainedModel", target: Target) -> Any:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        weights = load_peft_weights(str(target.adapter), device=str(base.device))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"the weights in {target.adapter} can't be read: {error}; is the file whole?") from None
    try:
        lora = LoraConfig.from_pretrained(str(target.adapter))
        lora.base_model_name_or_path = base.name_or_path  # checked already; PEFT warns of another folder
        model = get_peft_model(base, lora)
    except (ValueError, TypeError) as error:
        raise UserError(f"the adapter in {target.adapter} does not fit {target.base}: {error}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:  # before it is filled: it begins in the base's dtype
            parameter.data = parameter.data.float()
    # An adapter on the embedding may or may not bring the base's own beside it.
    saved = get_peft_model_state_dict(model)
    expected = {name: tuple(w.shape) for name, w in saved.items() if ".base_layer." not in name}
    found = {name: tuple(w.shape) for name, w in weights.items() if ".base_layer." not in name}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        first = odd[0]
        raise UserError(
            f"the adapter in {target.adapter} does not fit {target.base}: {len(odd)} of {len(expected | found)} tensors differ (for one, {first} is "
            f"{found.get(first, 'absent')} and should be {expected.get(first, 'absent')}); it was trained on another base model: type --base with that one"
        )
    set_peft_model_state_dict(model, weights)
    return model


@dataclass(frozen=True)
class Vocabulary:
    """What the sampler needs of a model's tokenizer and configs."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: frozenset[int]
    forbidden: tuple[int, ...]  # rows of the head that no token has
    positions: int | None  # the longest text that the model can read


def load_vocabulary(target: Target, config: EvalConfig) -> Vocabulary:
    """Returns a model's tokenizer, from its own folder or else its base's, its stop ids and its room."""
    model_config, stops = load_model_config(target.base, "model", config)
    own = target.adapter is not None and (target.adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(target.adapter) if own else target.base, "model", config)
    stops = [*stops, *_handed_over(target.adapter)]
    ids = {*stops, tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    rows = model_config.get_text_config().vocab_size
    ids = frozenset(i for i in ids if i < rows)
    if not ids:
        raise UserError(f"neither tokenizer, generation config nor chat template of {target.name} names a stop token")
    known = set(tokenizer.get_vocab().values())
    forbidden = tuple(i for i in range(rows) if i not in known)
    return Vocabulary(
        tokenizer, ids, forbidden, getattr(model_config.get_text_config(), "max_position_embeddings", None)
    )


def _handed_over(adapter: Path | None) -> list[int]:
    """The stop ids that training wrote beside an adapter: of student and teacher."""
    file = adapter / "generation_config.json" if adapter else None
    if file is None or not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} can't be read: {error}") from None
    found = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) for i in found):
        raise UserError(f"{file} has eos_token_id {found!r}, which should be ids")
    return found


def fingerprint(target: Target, config: EvalConfig, say: Callable[[str], None]) -> str:
    """Returns what tells these weights from others: a hash of the files, or the hub's commit."""
    folders = [folder for folder in (target.adapter, Path(target.base)) if folder is not None and folder.is_dir()]
    digest = hashlib.sha256()
    for folder in folders:
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                settings = json.loads((folder / name).read_text(encoding="utf-8"))
                settings = (
                    {k: v for k, v in settings.items() if k not in _PLACES} if isinstance(settings, dict) else settings
                )
                digest.update(json.dumps(settings, sort_keys=True).encode())
        for file in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".py")):
            if file.stat().st_size > 2**30:
                say(f"reading {file.name} once, to know these weights again")
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    if not Path(target.base).is_dir():
        commit = getattr(load_model_config(target.base, "model", config)[0], "_commit_hash", None)
        digest.update(f"{target.base}@{commit}".encode())
    return digest.hexdigest()[:16]
