"""A run as seen in Jupyter: a progress bar with an ETA, the latest figures and a moving picture, in place of printed lines.

Redrawing the picture takes at most REDRAW_SHARE of the run's time: the more it costs, the rarer it is.
"""

import base64
import json
import math
import time
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.notebook import Panel, bar, in_notebook
from poweropd_lite.base.progress import clock
from poweropd_lite.run.live_picture import LivePicture
from poweropd_lite.run.metrics import Progress

SECONDS = 1.0  # between two redraws, at least
REDRAW_SHARE = 0.02  # of the time since the run began
FINAL_DPI = 110  # of the picture that the saved notebook keeps


def show_progress(config: Config, start: int, metrics: Path) -> "Progress | LiveRun":
    """Returns what shows a run from step `start` on: a live picture in Jupyter, a bar or lines elsewhere.

    `metrics` is the run's metrics.jsonl, which holds what a resumed run did before.
    """
    return LiveRun(config, start, metrics) if in_notebook() else Progress(config.steps, start)


class LiveRun:
    """Shows a run in the output of a notebook's cell. What is said is printed below."""

    def __init__(self, config: Config, start: int, metrics: Path) -> None:
        self.total, self.at, self.closed = config.steps, start, False
        self.started, self.shown, self.drawn = time.monotonic(), -math.inf, -math.inf
        self.spent = self.price = 0.0  # seconds of redrawing so far, and of the latest redraw
        self.seconds, self.done, self.doing = 0.0, 0, "train"
        self.figures: dict[str, str] = {}  # of the latest step
        self.score: dict[str, str] = {}  # of the latest evaluation
        self.panel, self.picture_panel = Panel(), Panel()
        reward = config.reward_label
        self.picture = LivePicture(config.steps, reward)
        for text in metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []:
            self._take(json.loads(text))
        self._show(now=True)
        self.spent = 0.0  # the first picture is the price of having one

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Shows step `step` (from 1)."""
        self.at, self.doing = step, "train"
        self.seconds, self.done = self.seconds + metrics["time/step"], self.done + 1
        self._take({"step": step, **metrics})
        self._show()

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Shows an evaluation."""
        self.doing = "train"
        self._take({"step": step, **metrics})
        self._show(now=True)

    def evaluating(self, done: int, total: int) -> None:
        """Shows how far an evaluation is."""
        self.doing = f"evaluate {done:,}/{total:,}"
        self._show()

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def close(self) -> None:
        """Shows the last state, in a picture that is worth keeping."""
        if not self.closed:
            self.closed = True
            self._show(now=True)
            self._draw(FINAL_DPI)

    def _take(self, line: dict[str, Any]) -> None:
        self.picture.add(line)
        if "loss" in line:
            self.figures = {
                "loss": f"{float(line['loss']):+.4f}",
                "reward": f"{float(line['reward/mean']):+.3f}",
                "gradient norm": f"{float(line['optim/grad_norm']):.3f}",
                "tokens/s": f"{line['time/tokens_per_second']:,.0f}",
                "length": f"{line['rollout/length']:.0f}",
                "stop": f"{line['rollout/stop_share']:.1%}",
            }
        for key, value in line.items():
            if key.startswith("eval/avg@"):
                self.score["Avg@" + key.partition("@")[2]] = f"{value:.1%} at step {line['step']}"

    def _show(self, now: bool = False) -> None:
        time_now = time.monotonic()
        if not now and time_now - self.shown < SECONDS:
            return
        self.shown = time_now
        text = f"step {self.at:,} of {self.total:,}"
        if self.closed:
            text += f", {clock(time_now - self.started)}"
        else:
            left = clock(self.seconds / self.done * (self.total - self.at)) if self.done else "?"
            text = f"{self.doing}: {text}, ETA {left}"
        self.panel.show(bar(text, self.at, self.total, self.score | self.figures))
        # Counted with the redraw to come, so that the share holds after it too.
        affordable = self.spent + self.price <= REDRAW_SHARE * (time_now - self.started)
        if affordable and self.drawn + SECONDS <= time_now and not self.closed:
            self._draw()

    def _draw(self, dpi: int = 80) -> None:
        self.drawn = time.monotonic()
        png = base64.b64encode(self.picture.png(dpi)).decode()
        text = f"<rewards, accuracy, gradient norm and length of {self.at:,} steps>"
        self.picture_panel.show({"image/png": png, "text/plain": text})
        self.price = time.monotonic() - self.drawn
        self.spent += self.price
