"""An adapter's folder, as PEFT, TRL, Unsloth or a run saved it: its settings checked, its weights read and put on a base.

A run that starts from one (`adapter`) takes rank, alpha and modules from it: `settle_adapter`.
"""

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poweropd_lite.base.config import MOST_RANK, Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.base.explained import explained, not_downloaded
from poweropd_lite.base.files import MANIFEST, changed_since, read_json
from poweropd_lite.models.adapter import MOVES_BASE
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.probe import REFERENCE
from poweropd_lite.models.whole import own_name

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."  # PEFT's, of every tensor of an adapter
EXPORT = "export.json"  # what an export says of itself, with the digests of its files
# What LoraConfig has and training follows, beside what is null, false or empty; anything else would be lost or half done.
_FOLLOWED = {
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("ensure_weight_tying", "fan_in_fan_out", "bias", "megatron_core", "qalora_group_size", "runtime_config"),
}  # fmt: skip
# Of MOVES_BASE those that PEFT does not do again when it loads such an adapter, and how each is made one of the base as it is.
_NOT_AGAIN = {
    "loftq": ("LoftQ", "replace_lora_weights_loftq"),
    "lora_ga": ("LoRA-GA", "save_pretrained and path_initial_model_for_weight_conversion"),
}


def saved_settings(path: Path) -> dict[str, Any]:
    """Returns what an adapter's folder says in adapter_config.json; raises UserError for one that can't be used."""
    try:
        saved = read_json(path / "adapter_config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/adapter_config.json can't be read: {not_downloaded(path) or error}") from None
    if fault := _no_settings(saved):
        raise UserError(f"{path}/adapter_config.json is no adapter's: {fault}")
    if saved.get("peft_type") != "LORA":
        raise UserError(f"{path} is an adapter of type {saved.get('peft_type')}, and only LoRA is supported")
    if not any((path / file).is_file() for file in ("adapter_model.safetensors", "adapter_model.bin")):
        raise UserError(f"{path} has no adapter_model.safetensors, so there are no weights to evaluate")
    if start := _NOT_AGAIN.get(str(saved.get("init_lora_weights")).lower()):
        raise UserError(
            f"the adapter in {path} began with {start[0]}, which changed its base, too: on the base as it is it means little; "
            f"save it with PEFT's {start[1]}, or merged into its own base, and type that"
        )
    check_handed_over(path)
    return saved


def check_handed_over(folder: Path) -> None:
    """Raises UserError if what a run handed over, with a manifest, or an export wrote, is not what it was."""
    if _is_ours(export := folder / EXPORT) and (fault := changed_since(folder, manifest=EXPORT)):
        raise UserError(
            f"{folder} is not what its export wrote: {fault}; export it again, or remove {export} if you changed it yourself"
        )
    ours = (folder / REFERENCE).is_file() or (folder.parent / "config.yaml").is_file()  # others write such files too
    if ours and (folder / MANIFEST).is_file() and (fault := changed_since(folder)):
        again = "take it from its run again"
        if (folder.parent / "config.yaml").is_file():
            run = f"python -m poweropd_lite.train --resume {shlex.quote(str(folder.parent))}"
            again = f"{run} hands over again what its last checkpoint holds"
        own = f"or remove {folder / MANIFEST} if you changed it yourself"
        raise UserError(f"{folder} is not what its training handed over: {fault}; {again}, {own}")


def _is_ours(file: Path) -> bool:
    """Whether an export.json has digests; one that can't be read may have had them."""
    try:
        return file.is_file() and "sha256" in read_json(file)
    except (OSError, ValueError, TypeError):
        return True


def _no_settings(saved: Any) -> str | None:
    """Returns what in an adapter's settings no adapter has, of those that are read here; None if nothing."""
    if not isinstance(saved, dict):
        return "it should hold settings"

    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    ranks = saved.get("rank_pattern") or {}
    sound = {
        f"r, a whole number from 1 to {MOST_RANK:,}": _is_rank(saved.get("r", 8)),
        f"rank_pattern, with whole numbers from 1 to {MOST_RANK:,}": isinstance(ranks, dict)
        and all(map(_is_rank, ranks.values())),
        "lora_alpha, a number": isinstance(saved.get("lora_alpha", 8), int | float),
        "base_model_name_or_path, a text": isinstance(saved.get("base_model_name_or_path") or "", str),
        "revision, a text": isinstance(saved.get("revision") or "", str),
        "target_modules, names": isinstance(saved.get("target_modules") or "", str) or names(saved["target_modules"]),
        "modules_to_save, names": names(saved.get("modules_to_save") or []),
        "megatron_config, null: it would import a module by its name": not saved.get("megatron_config"),
    }
    found = [
        f"{what} (found {cut(repr(saved.get(what.split(',')[0])), 60)})"
        for what, is_sound in sound.items()
        if not is_sound
    ]
    return f"it should hold {'; '.join(found)}" if found else None


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and 1 <= value <= MOST_RANK


def largest_rank(saved: dict[str, Any]) -> int:
    """Returns the largest rank of an adapter's layers."""
    return max([saved.get("r") or 8, *(saved.get("rank_pattern") or {}).values()])  # 8 is PEFT's own


def bare(name: str) -> str:
    """A model's name without its owner, and without what Unsloth puts behind the names of its 4-bit copies."""
    return re.sub(r"(?:-unsloth)?(?:-bnb-4bit)?$", "", Path(name).name.lower())


def saved_weights(path: Path, saved: dict[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    """Returns an adapter's tensors by their names on a language model, of one that was trained on a whole checkpoint too.

    Raises UserError for a file that can't be read and for infinite numbers.
    """
    weights = {_own(name): weight for name, weight in _read(path, device).items()}
    scale = saved.get("lora_alpha")
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken or (isinstance(scale, float) and not math.isfinite(scale)):
        which = f"{len(broken)} weights, for one {broken[0]}" if broken else f"lora_alpha {scale}"
        raise UserError(f"{path} holds numbers that are not finite ({which}): damaged, or its training went wrong")
    return weights


def names_a_whole(path: Path) -> bool:
    """Whether an adapter's tensors are named as in a whole checkpoint; raises UserError for a file that can't be read."""
    return any(_own(name) != name for name in _read(path, "cpu"))


def _own(name: str) -> str:
    return PREFIX + own_name(name.removeprefix(PREFIX))


def _read(path: Path, device: str) -> dict[str, Tensor]:
    from peft.utils import load_peft_weights

    with explained(f"the weights in {path} can't be read", str(path), "is the file whole? take it from elsewhere"):
        return load_peft_weights(str(path), device=device)


def fill_adapter(model: "PeftModel", path: Path, weights: dict[str, Tensor], base: str, flag: str) -> None:
    """Puts an adapter's weights, float32, into a model that has one of its kind. Raises UserError where the two differ."""
    from peft import set_peft_model_state_dict

    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:  # before it is filled: it begins in the base's dtype
            parameter.data = parameter.data.float()
    check_fit(model, path, weights, base, flag)
    set_peft_model_state_dict(model, weights)


def check_fit(model: "PeftModel", path: Path, weights: dict[str, Tensor], base: str, flag: str) -> None:
    """Raises UserError unless an adapter's weights have the names and shapes of a model's own."""
    from peft import get_peft_model_state_dict

    # An adapter on the embedding may or may not bring the base's own beside it.
    expected, found = (
        {name: tuple(w.shape) for name, w in tensors.items() if ".base_layer." not in name}
        for tensors in (get_peft_model_state_dict(model), weights)
    )
    if odd := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        is_there, should_be = (shapes.get(odd[0], "absent") for shapes in (found, expected))
        one = f"for one, {odd[0]} is {is_there} and should be {should_be}"
        differ = f"{len(odd)} of {len(expected | found)} tensors differ ({one})"
        mend = f"it was trained on another base model: type {flag} with that one"
        raise UserError(f"the adapter in {path} does not fit {base}: {differ}; {mend}")


def settle_adapter(config: Config, say: Callable[[str], None]) -> Config:
    """Returns a run's config with rank, alpha and modules of the adapter that it starts from, having said where it had others.

    Raises UserError for an adapter that can't be trained on, or that is another base model's.
    """
    if config.adapter is None:
        return config
    path = Path(config.adapter)
    if (path / "adapter" / "adapter_config.json").is_file():
        raise UserError(f"{path} is a run's folder; type --adapter {shlex.quote(str(path / 'adapter'))}")
    if not (path / "adapter_config.json").is_file():
        raise UserError(
            f"--adapter {path} is no folder of an adapter (it has no adapter_config.json); type the folder that PEFT's "
            "save_pretrained wrote, or DIR/adapter of a run, or leave it out to start with a new one; a resumed run needs it where it was"
        )
    saved = saved_settings(path)
    if fault := _unfit(saved):
        raise UserError(f"the adapter in {path} can't be trained on: {fault}")
    _check_base(config, path, str(saved.get("base_model_name_or_path") or ""), say)
    targets = saved["target_modules"]
    own: dict[str, Any] = {
        "lora_rank": saved.get("r", 8),
        "lora_alpha": float(saved.get("lora_alpha", 8)),
        "lora_targets": targets if isinstance(targets, str) else ",".join(sorted(targets)),
        "modules_to_save": ",".join(saved.get("modules_to_save") or []),
    }
    given = {name: getattr(config, name) for name in own if name in config.model_fields_set}
    if other := {name: value for name, value in given.items() if value != own[name]}:
        found = ", ".join(f"{name} {own[name]} (not {value})" for name, value in other.items())
        say(f"from the adapter in {path}: {found}")
    return changed(config, **own)


def _unfit(saved: dict[str, Any]) -> str | None:
    """Why an adapter can't be trained on; None if it can."""
    if not saved.get("target_modules"):
        return "it names no target_modules"
    if saved.get("bias", "none") != "none":
        return f"it trains biases (bias {saved['bias']}), which neither rollouts nor a merge follow"
    start = str(saved.get("init_lora_weights")).lower()
    if start.startswith(MOVES_BASE):
        return (
            f"it began with init_lora_weights {start}, which changes the base too; convert it with PEFT first "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if odd := sorted(name for name, value in saved.items() if value and name not in _FOLLOWED):
        return f"it has {', '.join(odd[:5])}, which training here does not follow; merge it into its base first"
    return None


def _check_base(config: Config, path: Path, named: str, say: Callable[[str], None]) -> None:
    student = model_path(config.student, "student")
    if not named or bare(named) == bare(student):
        return
    found = f"the adapter in {path} was trained on {named}, and the student is {config.student}"
    if not Path(config.student).is_dir():
        raise UserError(
            f"{found}: on another base model it means nothing; type --student with {named} or a folder that holds a copy of it"
        )
    say(f"{found}: whether that folder holds that model is known by the shapes of its weights alone")


def plain(saved: dict[str, Any]) -> str | None:
    """Why an adapter is more than one rank, scale and list of names, which is all that Unsloth is told; None if it is not."""
    odd = ("rank_pattern", "alpha_pattern", "use_dora", "exclude_modules", "layers_to_transform", "fan_in_fan_out")
    found = [name for name in odd if saved.get(name)]
    found += ["target_modules as a pattern"] if isinstance(saved.get("target_modules"), str) else []
    return f"the adapter to start from has {', '.join(found)}" if found else None
