"""The record of an export: what will be done, settled before any weights are loaded (prepare.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from poweropd_lite.evaluate.target import Target, Vocabulary
from poweropd_lite.export.settings import ExportConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Job:
    """An export that can be carried out."""

    config: ExportConfig
    target: Target
    vocabulary: Vocabulary
    model_config: "PretrainedConfig"  # of the base
    out: Path
    kind: str  # what the weights are written as; a key of proof.LIMITS
    revision: str | None  # the base's commit on the hub
    token: str | None  # the hub's
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call the export."""
        if self.config.push:
            return self.config.push.split("/")[1]
        own, run = self.out.resolve().name, self.target.run_folder
        return f"{run.resolve().name}-{own}" if run is not None and self.config.out is None else own

    @property
    def gguf_type(self) -> str:
        """The kind of weights in a GGUF file."""
        return self.config.gguf_type.lower()
