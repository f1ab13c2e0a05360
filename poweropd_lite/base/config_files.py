"""Where config files are found and how they are read; what their settings mean is config.py's."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from poweropd_lite.base.errors import UserError

Settings = TypeVar("Settings", bound=BaseModel)
# Shipped configs of the paper's four pairs as LoRA, from the least memory to the most.
PAPER_PAIRS = ("qwen3-0.6b-4b", "qwen3-0.6b-8b", "qwen3-1.7b-4b", "qwen3-1.7b-8b")
QWEN_CONFIG = PAPER_PAIRS[0]  # what a card gets that is asked for nothing else


def nearest(name: object, names: Iterable[str], otherwise: str = "; --help lists them all") -> str:
    """Returns '; did you mean ...?' for the closest of `names`; `otherwise` says where to find them all."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else otherwise


def config_folder() -> Path:
    """Returns the folder of the shipped YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def config_path(config: str | Path) -> Path:
    """Returns the YAML file of a path or a shipped config's name; raises UserError when there is neither."""
    path = Path(config)
    shipped = config_folder() / f"{config}.yaml"
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise UserError(f"no config file at {path}; shipped configs are: {', '.join(shipped_configs())}")
        return path
    if not shipped.is_file():
        names = shipped_configs()
        raise UserError(f"no config named '{config}'{nearest(config, names)} (shipped: {', '.join(names)})")
    return shipped


def shipped_configs() -> list[str]:
    """Returns the names of the shipped configs, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML file's mapping; raises UserError where it is not one, or names a key twice."""

    class UniqueKeys(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"{path} sets {', '.join(twice)} twice; keep one line")
        return loader.construct_mapping(node, deep=True)

    UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'setting: value' lines, but it is a {type(values).__name__}")
    return values


def checked(kind: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """Returns the `kind` (a pydantic model) of `values`; raises UserError with every fault found."""
    fields = kind.model_fields
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UserError("\n".join(f"unknown setting '{key}'{where}{nearest(key, fields)}" for key in unknown))
    for key, value in values.items():  # YAML's yes and no, which would count as 1 and 0
        takes = fields[key].annotation
        if isinstance(value, bool) and bool not in (takes, *get_args(takes)) and "off" not in get_args(takes):
            raise UserError(f"{key}: found {value}, but it is not a switch; --help says what it takes")
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(fault, fields) for fault in error.errors())) from None


def changed(settings: Settings, **values: Any) -> Settings:
    """Returns `settings` with some values changed, checked anew as a whole; raises UserError as `checked` does."""
    return checked(type(settings), {**settings.model_dump(exclude_unset=True), **values})


def _explain(fault: Any, fields: dict[str, Any]) -> str:
    if not fault["loc"]:
        return str(fault["ctx"]["error"])
    name = fault["loc"][0]
    field = fields[name]
    message = fault["msg"].replace("Input should be", "it should be").replace("String", "it").rstrip(".")
    none = field.is_required() or field.default is None
    example = "" if none else f"; the default is --{name.replace('_', '-')} {field.default}"
    return f"{name}: found {fault['input']!r}, but {message}{example}"


def dump_yaml(config: Any) -> str:
    """Returns every setting as YAML, in the order of config.py; `load_config` reads it back to an equal Config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
