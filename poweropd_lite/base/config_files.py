"""Where config files are found and how they are read; what their settings mean is config.py's."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from poweropd_lite.base.errors import UserError, cut

Settings = TypeVar("Settings", bound=BaseModel)
# Shipped configs of the paper's four pairs as LoRA, from the least memory to the most.
PAPER_PAIRS = ("qwen3-0.6b-4b", "qwen3-0.6b-8b", "qwen3-1.7b-4b", "qwen3-1.7b-8b")
LARGEST = 100_000  # bytes of a file of settings; a run's own has 3,000
_NAMED = 10  # unknown settings that a message names
QWEN_CONFIG = PAPER_PAIRS[0]  # what a card gets that is asked for nothing else


def nearest(name: object, names: Iterable[str], otherwise: str = "; --help lists them all") -> str:
    """Returns '; did you mean ...?' for the closest of `names`; `otherwise` says where to find them all."""
    close = difflib.get_close_matches(str(name)[:100], list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else otherwise


def config_folder() -> Path:
    """Returns the folder of the shipped YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def config_path(config: str | Path) -> Path:
    """Returns the YAML file of a path or a shipped config's name; raises UserError when there is neither."""
    path = Path(config)
    shipped = config_folder() / f"{config}.yaml"
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):  # which is no error for a name too long
        if not os.path.isfile(path):
            raise UserError(f"no config file at {cut(str(path))}; shipped configs are: {', '.join(shipped_configs())}")
        return path
    if not os.path.isfile(shipped):
        names = shipped_configs()
        raise UserError(f"no config named '{cut(str(config))}'{nearest(config, names)} (shipped: {', '.join(names)})")
    return shipped


def shipped_configs() -> list[str]:
    """Returns the names of the shipped configs, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML file's mapping; raises UserError where it is not one, or names a key twice."""

    class Plain(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word, and an alias of aliases (*a) takes all memory."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UserError(
                    f"{path} has an alias (*{self.peek_event().anchor}), which no setting needs; write it out"
                )
            return super().compose_node(parent, index)

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
        keys = Counter(str(loader.construct_object(key, deep=True)) for key, _ in node.value)
        if twice := sorted(key for key, count in keys.items() if count > 1):
            raise UserError(f"{path} sets {', '.join(twice)} twice; keep one line")
        return loader.construct_mapping(node, deep=True)

    Plain.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(
                f"{path} has more than {LARGEST:,} bytes, which no file of settings has; type the name of one"
            )
        values = yaml.load(content.decode(), Plain)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not YAML: {cut(' '.join(str(error).split()), 500)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'setting: value' lines, but it is a {type(values).__name__}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise UserError(
            f"{path} sets {cut(str(odd[0]))}, which is no setting's name but a {type(odd[0]).__name__}; --help lists the names"
        )
    return values


def checked(kind: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """Returns the `kind` (a pydantic model) of `values`; raises UserError with every fault found."""
    fields = kind.model_fields
    unknown = [key for key in values if key not in fields]
    if unknown:
        lines = [f"unknown setting '{cut(key)}'{where}{nearest(key, fields)}" for key in unknown[:_NAMED]]
        raise UserError("\n".join([*lines, *([f"and {len(unknown) - _NAMED:,} more"] if unknown[_NAMED:] else [])]))
    unset = {key for key, value in values.items() if value == "none" and type(None) in get_args(fields[key].annotation)}
    values = {key: None if key in unset else value for key, value in values.items()}  # as on the command line
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
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    message = message.replace("Input should be", "it should be").replace("String", "it")
    none = field.is_required() or field.default is None
    example = "" if none else f"; the default is --{name.replace('_', '-')} {field.default}"
    return f"{name}: found {cut(repr(fault['input']))}, but {message}{example}"


def dump_yaml(config: Any) -> str:
    """Returns every setting as YAML, in the order of config.py; `load_config` reads it back to an equal Config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
