"""PowerOPD on one GPU: memory-efficient on-policy distillation with a bounded reward (arXiv 2606.17199)."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poweropd_lite.base.config import load_config

__version__ = "0.1.0"
__all__ = ["__version__", "load_config"]

# In every notebook without ipywidgets tqdm advises to install it, for bars that the libraries used here do not show.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    if name != "load_config":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from poweropd_lite.base.config import load_config

    return load_config


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
