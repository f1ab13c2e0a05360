"""What the fields of settings are made of: their sentences, sections and marks, and how a flag's text is read."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def as_literal(value: Any) -> Any:
    """A flag comes as text, which pydantic compares with a literal number as it stands; YAML reads a bare on as true."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return int(value) if isinstance(value, str) and value.isdigit() else value


Bits = Annotated[Literal[4, 8, 16, 32], BeforeValidator(as_literal)]


def section(title: str) -> dict[str, Any]:
    """Puts a flag and those after it under a heading of --help."""
    return {"section": title}


def setting(default: Any, description: str, *, section: str = "", marks: str = "", **limits: Any) -> Any:
    """One setting of a run; `section` begins one, `marks` are words apart by spaces: config.marked says which there are."""
    extra: dict[str, Any] = {"marks": marks.split(), **({"section": section} if section else {})}
    return Field(default, description=description, json_schema_extra=extra, **limits)
