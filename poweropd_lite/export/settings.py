"""Settings of the export command: their defaults, limits and a sentence on each."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import section
from poweropd_lite.evaluate.settings import Dtype

FORMATS = ("adapter", "merged-16bit", "merged-4bit", "gguf")
OWN_GGUF = ("f32", "f16", "bf16", "q8_0")  # written here; any other kind is made by llama.cpp's own tools


class ExportConfig(BaseModel):
    """One export. Fields are flags of the export command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        min_length=1,
        description="a run folder, a PEFT adapter or a model (folder or hub id); may be typed without the flag",
        json_schema_extra=section("what"),
    )
    to: Literal["adapter", "merged-16bit", "merged-4bit", "gguf"] = Field(
        description="adapter: PEFT's format; merged-16bit: one model in safetensors; merged-4bit: the same in NF4; "
        "gguf: one file for llama.cpp and Ollama"
    )
    base: str | None = Field(None, min_length=1, description="an adapter's base model; if not given, the one it names")
    dtype: Dtype = Field("auto", description="of merged-16bit; auto: as the base has it, bfloat16 for float32")
    gguf_type: str = Field(
        "q8_0",
        min_length=1,
        description="weights of gguf: f32, f16, bf16, q8_0, or with --llama-cpp what it can quantise to, such as q4_k_m",
    )
    llama_cpp: str | None = Field(None, min_length=1, description="a llama.cpp checkout: for other types and models")
    trust_remote_code: bool = Field(False, description="run Python code of a model; only for sources you trust")

    output: str | None = Field(
        None,
        min_length=1,
        description="folder to write; if not given, export/ in a run folder, else a new name under exports/",
        json_schema_extra=section("where"),
    )
    overwrite: bool = Field(False, description="replace an earlier export in that folder, once the new one is proven")
    push: str | None = Field(
        None, min_length=1, description="upload it to the hub as ORG/NAME, with the token HF_TOKEN"
    )
    private: bool = Field(True, description="whether a repository that --push makes is private")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems, fields = [], self.model_fields_set
        if self.to != "merged-16bit" and self.dtype != "auto":
            problems.append(f"dtype {self.dtype} is of merged-16bit, and --to is {self.to}; leave out --dtype")
        if self.to != "gguf" and {"gguf_type", "llama_cpp"} & fields:
            problems.append(f"--gguf-type and --llama-cpp are of gguf, and --to is {self.to}; leave them out")
        if self.to == "gguf" and self.gguf_kind not in OWN_GGUF and self.llama_cpp is None:
            problems.append(
                f"gguf_type {self.gguf_type} is none of {', '.join(OWN_GGUF)}, which are written here; others are made "
                "by llama.cpp's own quantiser: type --llama-cpp with the folder of a built llama.cpp checkout"
            )
        if self.push is not None and not _HUB_NAME.fullmatch(self.push):
            problems.append(f"push: found {self.push!r}, but it should be ORG/NAME, such as me/qwen3-0.6b-power10")
        if "private" in fields and self.push is None:
            problems.append("private is of an upload; type --push ORG/NAME, or leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def gguf_kind(self) -> str:
        """The kind of weights in a GGUF file."""
        return self.gguf_type.lower()


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")


def load_export_config(**settings: Any) -> ExportConfig:
    """Returns the ExportConfig of `settings`; raises UserError as load_config does."""
    if not set(settings) - set(ExportConfig.model_fields):
        if settings.get("model") is None:
            example = "python -m poweropd_lite.export runs/power10-seed0 --to adapter"
            raise UserError(f"nothing to export; type a run folder or an adapter: {example}")
        if settings.get("to") is None:
            raise UserError(f"no format to export to; type --to with one of {', '.join(FORMATS)}")
    return checked(ExportConfig, {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()})
