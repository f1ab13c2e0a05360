"""What a run writes about itself: one JSON line a step, a progress line, and a tracker if one is asked for.

Names are grouped (`reward/mean`, `optim/lr`, `time/rollout`); docs/metrics.md explains each. Only `time/*` and `memory/*`
may differ between two runs of one config.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from poweropd_lite.config import Config
from poweropd_lite.notebook import Panel, bar, in_notebook

if TYPE_CHECKING:
    import torch


def distribution(name: str, values: "torch.Tensor") -> dict[str, float]:
    """Returns mean, standard deviation, min, p05, p95 and max of `values` [N] as metrics of one group."""
    import torch

    marks = torch.tensor([0.0, 0.05, 0.95, 1.0], device=values.device)
    # torch.quantile refuses more than 16 million values, which a step of one card never has.
    low, p05, p95, high = torch.quantile(values.double(), marks.double()).tolist()
    mean, std = values.double().mean().item(), values.double().std(correction=0).item()
    keys = ("mean", "std", "min", "p05", "p95", "max")
    return {f"{name}/{key}": v for key, v in zip(keys, (mean, std, low, p05, p95, high), strict=True)}


class JsonLines:
    """A file with one object a line, in the order of the steps: `metrics.jsonl` and `samples.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drops every line after `step`: a resumed run writes them again. A line cut by a kill goes too.

        Lines end at "\\n" alone: a sampled text may hold other characters that Python counts as line ends.
        """
        from poweropd_lite.files import write_text

        kept = []
        for line in self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []:
            try:
                if json.loads(line)["step"] > step:
                    break
            except ValueError:
                break
            kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def write(self, step: int, values: dict) -> None:
        """Appends one line. A number that JSON does not have (NaN, infinity) is written as its name, a string."""
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **clean}, allow_nan=False, ensure_ascii=False) + "\n")

    def sync(self) -> None:
        """Brings every line to the disk, before a checkpoint says that they are there."""
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


class Progress:
    """The live line: a bar on a terminal, twenty plain lines a run elsewhere. (In a notebook: live.py.)"""

    def __init__(self, total: int, start: int) -> None:
        from tqdm import tqdm

        self.total, self.live = total, sys.stderr.isatty()
        self.every = max(1, total // 20)
        self.bar = tqdm(
            total=total, initial=start, desc="train", unit="step", disable=not self.live, dynamic_ncols=True
        )
        self.seconds, self.done = 0.0, 0

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Shows step `step` (from 1)."""
        self.seconds, self.done = self.seconds + metrics["time/step"], self.done + 1
        facts = {
            "loss": f"{metrics.get('loss', 0.0):+.4f}",
            "reward": f"{metrics.get('reward/mean', 0.0):+.3f}",
            "grad": f"{metrics.get('optim/grad_norm', 0.0):.3f}",
            "tok/s": f"{metrics['time/tokens_per_second']:.0f}",
        }
        if self.live:
            self.bar.set_postfix(facts, refresh=False)
            self.bar.update()
        elif step % self.every == 0 or step == self.total:
            left = self.seconds / self.done * (self.total - step)
            text = "  ".join(f"{k} {v}" for k, v in facts.items())
            print(f"step {step}/{self.total}  {text}  ETA {clock(left)}", flush=True)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation has no place in the line; `say` tells of it."""

    def evaluating(self, done: int, total: int) -> None:
        """Shows how far an evaluation is, in front of the bar."""
        self.bar.set_description(f"evaluate {done}/{total}" if done else "evaluate")

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        self.bar.set_description("train")
        if self.live:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


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

    def show(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done, at `name` just now."""
        if done < self.done:  # the next thing to be counted
            self.before, self.start = 0, time.monotonic()
        self.done, now = done, time.monotonic()
        self.bar.total, self.bar.n = total, done
        self.bar.set_description(name)
        if not self.live and (now - self.said > (1 if self.panel else 15) or done == total):
            self.said = now
            rate = (done - self.before) / max(now - self.start, 1e-9)
            eta = f"  ETA {clock((total - done) / rate)}" if 0 < done < total and rate else ""
            text = f"{name}  {done:,}/{total:,}{eta}"
            if self.panel:
                self.panel.show(bar(text, done, total))
            else:
                self.say(text)


class Tracker:
    """TensorBoard, W&B or trackio, through accelerate; nothing when `config.tracker` is none."""

    def __init__(self, config: Config, run: Path) -> None:
        self.accelerator = None
        if config.tracker != "none":
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=True, log_with=config.tracker, project_dir=str(run))
            flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in config.model_dump().items()}
            self.accelerator.init_trackers("poweropd_lite", config=flat)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Sends one step."""
        if self.accelerator is not None:
            self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """Flushes and ends."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def clock(seconds: float) -> str:
    """Returns a duration as 0:07, 3:41 or 2:05:09, and from two days on as 70 days 19 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
