"""What is to be evaluated: a run folder, an adapter, a whole model or a hub id, found and checked before it is loaded.

Its stop ids are those of its tokenizer, its generation config and its chat template's end of turn: a base model taught by a
chat model ends with either.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config, load_config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json
from poweropd_lite.models.loading import is_missing_folder, load_model_config, load_tokenizer, model_path
from poweropd_lite.models.probe import REFERENCE
from poweropd_lite.models.saved import EXPORT, bare, check_handed_over, saved_settings
from poweropd_lite.problems.prompts import end_of_turn
from poweropd_lite.run.folder import whole_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED = {"bundled": "student", "bundled-student": "student", "bundled-teacher": "teacher"}
_NO_PART = ("base_model_name_or_path", "_name_or_path", "transformers_version", "peft_version")  # of what a model is


@dataclass(frozen=True)
class Target:
    """A model that was found. `adapter` is None for a whole model."""

    name: str  # as typed
    base: str  # what transformers loads
    adapter: Path | None = None
    adapter_config: dict[str, Any] = field(default_factory=dict)
    run: Config | None = None  # of a run folder
    run_folder: Path | None = None
    notes: tuple[str, ...] = ()  # what a user should know

    @property
    def kind(self) -> str:
        return "run" if self.run is not None else "adapter" if self.adapter else "model"

    @property
    def role(self) -> str:
        """What messages call `base`: an adapter's is typed as --base."""
        return "base" if self.kind == "adapter" else "model"

    @property
    def is_bundled(self) -> bool:
        return self.base in (model_path(BUNDLED, "student"), model_path(BUNDLED, "teacher"))


def find_target(name: str, asked_base: str | None = None, remote_code: bool = False) -> Target:
    """Returns what `name` is: a run folder, an adapter, a model or a hub id; raises UserError for none of these.

    `asked_base` is the base model of an adapter, if not the one that it names.
    """
    if name in SHIPPED:
        return _whole(name, asked_base, model_path(BUNDLED, SHIPPED[name]))
    path = Path(name)
    if path.is_dir():
        if (path / "config.yaml").is_file():
            return _run(path, asked_base)
        if (path / "adapter_config.json").is_file():
            handed_over = path.resolve().name == "adapter" and (path.parent / "config.yaml").is_file()
            run = handed_over and asked_base is None
            return _run(path.parent, asked_base, name) if run else _adapter(path, asked_base)
        if (path / "config.json").is_file():
            handed_over = path.name == "model" and (path.parent / "config.yaml").is_file()
            check_handed_over(path)
            return _run(path.parent, asked_base, name) if handed_over else _whole(name, asked_base)
        what = "is no run folder (config.yaml), no adapter (adapter_config.json) and no model (config.json)"
        mend = "one of these"
        if (path / "trained.safetensors").is_file():
            what, mend = "is a checkpoint", "the run's folder, which has adapter/ when it is stopped or done"
        if files := sorted(path.glob("*.gguf")):
            what, mend = f"holds a GGUF file ({files[0].name}), which llama.cpp reads", "what it was made of"
        raise UserError(f"{path} {what}; type {mend} in its place")
    if path.exists() or is_missing_folder(name):
        raise UserError(f"no folder {name}; type a run folder, an adapter, a model or a hub id")
    try:
        load_model_config(name, "model", remote_code)
    except UserError as error:
        if (adapter := _hub_adapter(name)) is not None:
            return _adapter(adapter, asked_base, name)
        here = "no folder of that name is here; shipped are bundled-student and bundled-teacher"
        raise UserError(f"{error}\n({here})") from None
    return _whole(name, asked_base)


def asked_as(target: Target, run: str | None) -> Target:
    """Returns `target` as if it were of another run: whose problems it is asked, and how; itself where `run` is None.

    Raises UserError for a folder that is no run.
    """
    if run is None:
        return target
    path = Path(run)
    if not (path / "config.yaml").is_file():
        what = "it has no config.yaml" if path.is_dir() else "there is no such folder"
        raise UserError(f"--problems-of {run} is no run: {what}; type the folder that train wrote")
    config = load_config(path / "config.yaml")
    return replace(target, run=changed(config, **whole_names(path, config)), run_folder=path)


def _whole(name: str, asked_base: str | None, model: str | None = None) -> Target:
    if asked_base is not None:
        raise UserError(f"{name} is a whole model, and --base is for adapters; leave it out")
    return Target(name, model or name)


def _run(path: Path, asked_base: str | None, name: str | None = None) -> Target:
    run, name = load_config(path / "config.yaml"), name or str(path)
    run = changed(run, **whole_names(path, run))
    if asked_base is not None:
        raise UserError(f"{path} is a run, whose config.yaml names its base model ({run.student}); leave out --base")
    if (path / "adapter" / "adapter_config.json").is_file():
        adapter = _adapter(path / "adapter", None, name, model_path(run.student, "student"))
        return replace(adapter, run=run, run_folder=path)
    if (path / "model" / "config.json").is_file():
        check_handed_over(path / "model")
        return Target(name, str(path / "model"), run=run, run_folder=path)
    found = f"the run in {path} has handed over no adapter/ or model/ yet: it is still training or was killed"
    raise UserError(f"{found}; type python -m poweropd_lite.train --resume {shlex.quote(str(path))}")


def _adapter(path: Path, asked_base: str | None, name: str | None = None, base: str | None = None) -> Target:
    saved = saved_settings(path)
    notes: tuple[str, ...] = ()
    named = str(saved.get("base_model_name_or_path") or "")
    if base is None and asked_base is not None:
        base = model_path(BUNDLED, SHIPPED[asked_base]) if asked_base in SHIPPED else asked_base
        if named and bare(named) != bare(base):
            found = f"the adapter in {path} was trained on {named}, and --base is {asked_base}"
            if not Path(base).is_dir():
                mend = f"type --base with {named} or a folder that holds a copy of it"
                raise UserError(f"{found}: on another base model it means nothing; {mend}")
            notes = (f"{found}: whether that folder holds that model is known by the shapes of its weights alone",)
    if base is None:
        shipped = Path(named).parts[-3:] == ("poweropd_lite", "tiny", "student")
        base = model_path(BUNDLED, SHIPPED.get(named, "student")) if shipped or named in SHIPPED else named
        if not base or (base.startswith(("/", ".", "~")) and not Path(base).is_dir()):
            raise UserError(
                f"{path} names {named or 'no'} base model, which is not here; type --base with its base model"
            )
    return Target(name or str(path), base, path, saved, notes=notes)


def _hub_adapter(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    files = ["adapter_*", "*token*", "*.jinja", "generation_config.json", REFERENCE, EXPORT]
    try:
        path = Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError):  # no such adapter, or no hub: what the model's own error says is said
        return None
    return path if (path / "adapter_config.json").is_file() else None


@dataclass(frozen=True)
class Vocabulary:
    """What the sampler needs of a model's tokenizer and configs."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: frozenset[int]
    forbidden: tuple[int, ...]  # rows of the head that no token has
    positions: int | None  # the longest text that the model can read


def load_vocabulary(target: Target, remote_code: bool = False) -> Vocabulary:
    """Returns a model's tokenizer, from its own folder or else its base's, its stop ids and its room."""
    model_config, stops = load_model_config(target.base, target.role, remote_code)
    text = model_config.get_text_config()
    own = target.adapter is not None and (target.adapter / "tokenizer_config.json").is_file()
    place, role = (str(target.adapter), "model") if own else (target.base, target.role)
    tokenizer = load_tokenizer(place, role, remote_code)
    ids = {*stops, *_handed_over(target.adapter), tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    stop_ids = frozenset(i for i in ids if i < text.vocab_size)
    if not stop_ids:
        raise UserError(f"neither tokenizer, generation config nor chat template of {target.name} names a stop token")
    forbidden = tuple(sorted({*range(text.vocab_size)} - {*tokenizer.get_vocab().values()}))
    return Vocabulary(tokenizer, stop_ids, forbidden, getattr(text, "max_position_embeddings", None))


def _handed_over(adapter: Path | None) -> list[int]:
    """The stop ids that training wrote beside an adapter: of student and teacher."""
    if adapter is None or not (file := adapter / "generation_config.json").is_file():
        return []
    try:
        ids = read_json(file).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} can't be read: {error}") from None
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(i, int) for i in ids):
        raise UserError(f"{file} has eos_token_id {ids!r}, which should be ids")
    return ids


def fingerprint(target: Target, remote_code: bool) -> str:
    """Returns what tells these weights from others: a hash of the files, or the hub's commit."""
    digest = hashlib.sha256()
    for folder in (f for f in (target.adapter, Path(target.base)) if f is not None and f.is_dir()):
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                settings = read_json(folder / name)
                if isinstance(settings, dict):
                    settings = {k: v for k, v in settings.items() if k not in _NO_PART}
                digest.update(json.dumps(settings, sort_keys=True).encode())
        for file in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".py")):
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    if not Path(target.base).is_dir():
        commit = getattr(load_model_config(target.base, "model", remote_code)[0], "_commit_hash", None)
        digest.update(f"{target.base}@{commit}".encode())
    return digest.hexdigest()[:16]
