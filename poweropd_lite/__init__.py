"""PowerOPD on one GPU: memory-efficient on-policy distillation with a bounded reward (arXiv 2606.17199)."""

__version__ = "0.1.0"
