"""One question to a run, an adapter or a model: `ask("runs/power10-seed0", "Compute 12 + 30 - 7.")`."""

from poweropd_lite.evaluate.ask import ask

__all__ = ["ask"]
