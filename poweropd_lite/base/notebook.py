"""Jupyter, as far as this program knows it: whether it runs in a kernel, and an output that is updated in place.

No widgets: HTML and PNG are shown by every front end, and are still there when the saved notebook is opened again.
"""

import html
import sys
from collections.abc import Mapping
from typing import Any


def in_notebook() -> bool:
    """Whether this is a Jupyter or Colab kernel. A plain IPython shell is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Panel:
    """One output of the running cell; `show` replaces what stood there, so a saved notebook keeps the last."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, bundle: Mapping[str, str | bytes]) -> None:
        """Shows a MIME bundle, such as {"text/html": ..., "text/plain": ...}; the first call fixes the place."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(dict(bundle), raw=True, display_id=True)
        else:
            self._handle.update(dict(bundle), raw=True)


def bar(text: str, done: int, total: int | None, figures: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns a line of text over a progress bar and, if there are any, a row of named figures, as a MIME bundle."""
    extent = f'max="{total}" value="{done}"' if total else ""
    parts = [f'<div>{html.escape(text)}</div><progress {extent} style="width: 100%"></progress>']
    plain = text
    if figures:
        names, values = ("".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words)
                         for tag, words in (("th", figures), ("td", figures.values())))  # fmt: skip
        parts.append(f"<table><tr>{names}</tr><tr>{values}</tr></table>")
        plain += "\n" + "  ".join(f"{name} {value}" for name, value in figures.items())
    return {"text/html": "".join(parts), "text/plain": plain}
