"""Progress with an ETA, on a terminal, in a log or in Jupyter; and durations as text.

Of Jupyter it is known whether this is a kernel, and how to update an output in place. No widgets: HTML and PNG are shown
by every front end, and are still there when the saved notebook is opened again.
"""

import html
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


class Counting:
    """Progress of things counted: a bar with an ETA on a terminal or in a notebook, a line every 15 seconds elsewhere."""

    def __init__(
        self, unit: str, total: int | None = None, done: int = 0, say: Callable[[str], None] | None = None
    ) -> None:
        from tqdm import tqdm

        self.say = say or (lambda text: print(text, flush=True))
        self.panel = Panel() if in_notebook() else None
        self.live = sys.stderr.isatty() and self.panel is None
        self.bar = tqdm(total=total, initial=done, unit=unit, disable=not self.live, dynamic_ncols=True)
        self.done, self.before, self.start = done, done, time.monotonic()
        self.said = self.start if self.panel is None else -math.inf

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, name: str, done: int, total: int, left: float | None = None) -> None:
        """Shows that `done` of `total` are done, at `name` just now, and the seconds `left`, where that is better known."""
        if done < self.done:  # the next thing to be counted
            self.before, self.start = 0, time.monotonic()
        self.done, now = done, time.monotonic()
        self.bar.total, self.bar.n = total, done
        if left is not None:
            self.bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<" + clock(left) + "]"
        self.bar.set_description(name)
        if not self.live and (now - self.said > (1 if self.panel else 15) or done == total):
            self.said = now
            rate = (done - self.before) / max(now - self.start, 1e-9)
            if left is None and rate:
                left = (total - done) / rate
            eta = f"  ETA {clock(left)}" if done < total and left is not None else ""
            text = f"{name}  {done:,}/{total:,}{eta}"
            if self.panel:
                self.panel.show(bar(text, done, total))
            else:
                self.say(text)


def clock(seconds: float) -> str:
    """Returns a duration as 0:07, 3:41 or 2:05:09, and from two days on as 70 days 19 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


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
