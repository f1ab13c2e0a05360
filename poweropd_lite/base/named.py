"""Which pair a command is asked about: the two models that a file or flags name, or the bundled one's."""

from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED, Config, load_config
from poweropd_lite.base.config_files import config_path, read_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.teachers import address_fault, is_address


def names_models(values: dict[str, Any], flags: dict[str, Any]) -> bool:
    """Whether a file's values and the flags name the two models; then they are taken on top of the defaults alone.

    Raises UserError where they name one alone: a student learns from no teacher that nobody chose.
    """
    named = {**values, **flags}
    if is_address(str(named.get("teacher"))) and (fault := address_fault(str(named["teacher"]))):
        raise UserError(fault)
    found = [role for role in ("student", "teacher") if role in named]
    if len(found) == 1:
        other = "teacher" if found == ["student"] else "student"
        does = "it learns from, of the same tokenizer" if other == "teacher" else "that learns from it"
        raise UserError(
            f"the {found[0]} {named[found[0]]} is named, and no {other}; type --{other} with the model {does}, or "
            f"--{other} {BUNDLED} for the small one that is shipped"
        )
    return len(found) == 2


def config_to_check(config: str | Path | None, flags: dict[str, Any]) -> Config:
    """Returns the run that doctor, plan, audit or advise is asked about: the bundled pair's where no models are named."""
    values = {} if config is None else read_yaml(config_path(config))
    if names_models(values, flags):
        return load_config(config, **flags)
    return load_config(BUNDLED, **{**values, **flags})
