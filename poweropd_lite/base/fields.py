"""What the fields of settings are made of: their sentences, sections and marks, and how a flag's text is read."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from poweropd_lite.base.errors import cut


def as_literal(value: Any) -> Any:
    """A flag comes as text, which pydantic compares with a literal number as it stands; YAML reads a bare on as true."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return int(value) if isinstance(value, str) and value.isdigit() else value


Bits = Annotated[Literal[4, 8, 16, 32], BeforeValidator(as_literal)]
Kernels = Annotated[Literal["auto", "off"], BeforeValidator(as_literal)]


def _as_mapping(value: Any) -> Any:
    """A flag comes as JSON; what YAML alone knows, such as a date, no JSON of a run could hold."""
    try:
        found = json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(map(str.isidentifier, found)):
        raise ValueError('it should be a mapping of names to plain values, such as {"reasoning_effort": "low"}')
    return found


Mapping = Annotated[dict[str, Any], BeforeValidator(_as_mapping)]


def function_fault(name: str | None) -> str | None:
    """Returns why a text can't name a user's function, if it can't."""
    if name is None or re.fullmatch(r"(?!\S*\.py:)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        return None
    file, _, function = name.partition(":")
    meant = f"{file.removesuffix('.py').strip('./').replace('/', '.') or 'my_grader'}:{function or 'score'}"
    sound = re.sub(r"[^\w.:]", "_", meant)
    renamed = f" (rename the file to {cut(sound.partition(':')[0])}.py)" if sound != meant else ""
    return f"found '{cut(name)}', but a function is named module:function, such as {cut(sound)}{renamed}"


def section(title: str) -> dict[str, Any]:
    """Puts a flag and those after it under a heading of --help."""
    return {"section": title}


def setting(default: Any, description: str, *, section: str = "", marks: str = "", **limits: Any) -> Any:
    """One setting of a run; `section` begins one, `marks` are words apart by spaces: config.marked says which there are."""
    extra: dict[str, Any] = {"marks": marks.split(), **({"section": section} if section else {})}
    return Field(default, description=description, json_schema_extra=extra, **limits)
