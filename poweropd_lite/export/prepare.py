"""What an export will do, settled before any weights are loaded; what can be refused is refused here."""

import contextlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import check_writable, existing
from poweropd_lite.evaluate.target import Target, find_target, load_vocabulary
from poweropd_lite.export.gguf import unfit
from poweropd_lite.export.gguf_vocab import stops
from poweropd_lite.export.handover import check_place
from poweropd_lite.export.job import Job
from poweropd_lite.export.llama_cpp import check_checkout, misread
from poweropd_lite.export.settings import OWN_GGUF, ExportConfig
from poweropd_lite.export.shards import Checkpoint
from poweropd_lite.models.loading import load_model_config, taken_from
from poweropd_lite.models.probe import REFERENCE
from poweropd_lite.problems.prompts import template_options

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


_GGUF_KINDS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "q8_0": 34 / 32, "nf4": 0.6, "llama.cpp": 2}


def prepare_job(config: ExportConfig) -> Job:
    """Returns what an export will do; raises UserError for what can't work."""
    token = _token(config)
    target = find_target(config.model, config.base, config.trust_remote_code)
    adapting, saved = config.to == "adapter", target.adapter_config
    if adapting and target.adapter is None:
        raise UserError(f"{target.name} is a whole model; type --to merged-16bit, merged-4bit or gguf")
    out = _out(config, target)
    vocabulary = load_vocabulary(target, config.trust_remote_code)
    model_config, _ = load_model_config(target.base, "model", config.trust_remote_code)
    if getattr(model_config, "quantization_config", None) is not None and not adapting:
        raise UserError(
            f"{target.base} is quantised already, and merging into it would round twice; type --base with its 16-bit "
            "original"
        )
    whole = taken_from(target.base, "model", config.trust_remote_code)
    notes = [*target.notes, *_of_whole(config, target, whole)]
    if adapting and saved.get("modules_to_save"):
        notes.append(
            "modules trained whole are part of this adapter: PEFT loads it, vLLM does not; --to merged-16bit is for "
            "vLLM"
        )
    for option, value in (template_options(target.run) if target.run is not None else {}).items():
        if _settle_option(vocabulary.tokenizer, target.name, option, value):
            other = "the other" if isinstance(value, bool) else "another"
            now = f"{_literal(value)} now, as in training; who asks for {other} gets it"
            notes.append(f"the chat template's own {option} is {now}")
    if adapting and Path(target.base).is_dir():
        notes.append(f"its base is a folder of this machine ({target.base}); elsewhere name that machine's copy of it")
    kind = _kind(config, model_config, whole)
    if config.to == "gguf":
        if config.llama_cpp is not None:
            check_checkout(Path(config.llama_cpp), config.gguf_kind)
            if unfit(model_config, vocabulary.tokenizer) and (fault := misread(model_config)):
                raise UserError(f"llama.cpp would misread this model: {fault}; type --to merged-16bit")
        elif fault := unfit(model_config, vocabulary.tokenizer):
            raise UserError(
                f"the GGUF file of this model can't be written here: {fault}; type --llama-cpp with the folder of a "
                "llama.cpp checkout, whose converter knows more models"
            )
        stops(vocabulary)
    _check_disk(config, target, out, kind)
    revision, pinned = getattr(model_config, "_commit_hash", None), saved.get("revision")
    hashed = pinned and re.fullmatch("[0-9a-f]{40}", pinned)  # main, or a part of a hash, can't be compared
    known = target.adapter is None or (target.adapter / REFERENCE).is_file()  # by what it says
    if hashed and revision and pinned != revision and not known:
        raise UserError(
            f"the adapter was trained on {target.base} at revision {pinned}, and what is loaded is {revision}; "
            "download that revision into a folder of the same name and type --base with it"
        )
    return Job(config, target, vocabulary, model_config, out, kind, revision, token, tuple(notes), whole)


def _literal(value: Any) -> str:
    """A plain value as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value)


def _settle_option(tokenizer: "PreTrainedTokenizerBase", name: str, option: str, value: Any) -> bool:
    """Makes an argument as it was in training the chat template's default; returns whether that was another one."""
    if not tokenizer.chat_template:
        return False
    messages = [{"role": "user", "content": "x"}]

    def is_default() -> bool:
        ways: list[dict[str, Any]] = [{}, {option: value}]
        plain, asked = (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **way) for way in ways
        )
        return plain == asked

    if is_default():
        return False
    default = f"{{%- if {option} is not defined %}}{{%- set {option} = {_literal(value)} %}}{{%- endif %}}"
    own = tokenizer.chat_template
    several = isinstance(own, dict)  # templates by name
    tokenizer.chat_template = {n: f"{default}\n{t}" for n, t in own.items()} if several else f"{default}\n{own}"
    if not is_default():
        how = f"{option}={value}, which it was trained with"
        raise UserError(f"the chat template of {name} can't be told {how}; mend chat_template.jinja beside it")
    return True


def _token(config: ExportConfig) -> str | None:
    token = os.environ.get("HF_TOKEN", "").strip()
    if config.push is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            "--push needs a token that may write, and HF_TOKEN holds none, or letters that no token has; type "
            "HF_TOKEN=... before the command (made at huggingface.co/settings/tokens), or leave out --push"
        )
    return token if config.push is not None else None


def _of_whole(config: ExportConfig, target: Target, whole: str | None) -> list[str]:
    """What is to be said of the other parts of a checkpoint of text and images: of the base, or of a run's student."""
    alone = "what is written is its language model alone, without its other parts"
    if whole is not None:
        told = {
            "adapter": f"the adapter's modules have the names of the whole {whole}: load it on that, not on a language model alone",
            "merged-16bit": f"the language model is put back into the {whole}: its other parts are the base's, byte for byte",
        }
        return [told.get(config.to, f"the base is a {whole}; {alone}")]
    if target.adapter is None and target.run is not None:
        with contextlib.suppress(UserError):  # it need not be there any more
            run = target.run
            if of_run := taken_from(run.student, "student", run.trust_remote_code):
                return [f"the run trained every weight of the language model of {run.student}, a {of_run}; {alone}"]
    return []


def _kind(config: ExportConfig, model_config: "PretrainedConfig", whole: str | None) -> str:
    if config.to == "merged-16bit":
        stored = str(model_config.dtype or "").removeprefix("torch.")
        if whole is not None:
            if config.dtype not in ("auto", stored):
                raise UserError(f"a {whole} keeps the dtype of its files, {stored}; leave out --dtype {config.dtype}")
            return stored or "float32"
        auto = stored if stored in ("float16", "bfloat16") else "bfloat16"
        return auto if config.dtype == "auto" else config.dtype
    own = {"adapter": "float32", "merged-4bit": "nf4"}
    return own.get(config.to) or _GGUF_KINDS.get(config.gguf_kind, "llama.cpp")


def _out(config: ExportConfig, target: Target) -> Path:
    """The folder to write, which is new, empty or (with --overwrite) an earlier export."""
    name = config.to if config.to != "gguf" else f"gguf-{config.gguf_kind}"
    if config.output is not None:
        path = Path(config.output)
    elif target.run_folder is not None:
        path = target.run_folder / "export" / name
    else:
        path = Path("exports") / f"{Path(target.name).resolve().name or 'model'}-{name}"
    check_writable(path, "--output")
    check_place(path, config.overwrite)
    resolved = path.resolve()
    sources = [s.resolve() for s in (target.adapter, Path(target.base)) if s is not None and s.is_dir()]
    if any(resolved == s or resolved in s.parents or s in resolved.parents for s in sources):
        raise UserError(f"{path} holds what is exported, or is inside it; type --output with the name of a new folder")
    return path


def _check_disk(config: ExportConfig, target: Target, out: Path, kind: str) -> None:
    """Raises UserError if the disk has no room for the export."""
    need = 64.0 * 2**20  # tokenizer, card, rounding
    if config.to == "adapter" and target.adapter is not None:
        need += sum(f.stat().st_size for f in target.adapter.iterdir() if f.is_file())
    else:
        elements = sum(math.prod(tensor.shape) for tensor in Checkpoint(target.base).tensors.values())
        need += elements * _BYTES[kind]
        if config.to == "merged-4bit" or (config.to == "gguf" and config.gguf_kind not in OWN_GGUF):
            need += 4 * elements  # the wider model that it is made from, for a while
    free = shutil.disk_usage(existing(out)).free
    if free < need:
        raise UserError(
            f"the export needs about {need / 2**30:.2f} GiB, and the disk of {existing(out)} has {free / 2**30:.2f} "
            "free; type --output with a folder on another disk"
        )
