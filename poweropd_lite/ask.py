"""One question to a run, an adapter or a model: `ask("runs/power10-seed0", "Compute 12 + 30 - 7.")` (evaluate/ask.py)."""

from typing import Any


def ask(model: Any, question: str, *, max_new_tokens: int | None = None) -> str:
    """Returns the greedy answer to a question, as evaluate.ask.ask does."""
    from poweropd_lite.evaluate.ask import ask

    return ask(model, question, max_new_tokens=max_new_tokens)
