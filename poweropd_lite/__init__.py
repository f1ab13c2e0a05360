"""PowerOPD on one GPU: memory-efficient on-policy distillation with a bounded reward (arXiv 2606.17199)."""

import warnings

__version__ = "0.1.0"

# In every notebook without ipywidgets tqdm advises to install it, for bars that the libraries used here do not show.
warnings.filterwarnings("ignore", message="IProgress not found")
