"""The record of an export: what will be done, settled before any weights are loaded (prepare.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
    whole: str | None = None  # the class of a base of text and images, whose language model is exported

    @property
    def name(self) -> str:
        """What to call the export."""
        if self.config.push:
            return self.config.push.split("/")[1]
        own, run = self.out.resolve().name, self.target.run_folder
        return f"{run.resolve().name}-{own}" if run is not None and self.config.output is None else own

    @property
    def stored_dtype(self) -> torch.dtype:
        """What the base's files hold."""
        return self.model_config.dtype if isinstance(self.model_config.dtype, torch.dtype) else torch.float32
