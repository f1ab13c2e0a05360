"""What a run writes about itself: one JSON line a step, what it keeps of a step's tokens, a tracker if one is asked for.

Names are grouped (`reward/mean`, `optim/lr`, `time/rollout`); docs/metrics.md explains each. Only `time/*` and `memory/*`
may differ between two runs of one config. Of a step's tokens small arrays are kept rather than raw tokens: a token is
counted in the bin that its reward falls into, and in the bin of its place in the completion; what lies outside of the
histogram's range is counted beside it, not put into its ends.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.files import append_text, free_folder, parse_json, write_text
from poweropd_lite.base.progress import clock
from poweropd_lite.method.batch import loss_lengths
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, StepTokens
from poweropd_lite.run.closeness import closeness


def distribution(name: str, values: torch.Tensor) -> dict[str, float]:
    """Returns mean, standard deviation, min, p05, p95 and max of `values` [N], on the host, as metrics of one group."""
    marks = torch.tensor([0.0, 0.05, 0.95, 1.0])
    # torch.quantile refuses more than 16 million values, which a step of one card never has.
    low, p05, p95, high = torch.quantile(values.double(), marks.double()).tolist()
    mean, std = values.double().mean().item(), values.double().std(correction=0).item()
    keys = ("mean", "std", "min", "p05", "p95", "max")
    return {f"{name}/{key}": v for key, v in zip(keys, (mean, std, low, p05, p95, high), strict=True)}


def set_compiling_apart(
    metrics: dict[str, float], before: dict[str, float], last_try: dict[str, float], now: dict[str, float]
) -> None:
    """Takes compiling out of a step's own pace, and sums it up in time/compile.

    The seconds that compiling had taken, by whose layers: `before` the step, before the try that its times are of, and `now`.
    """
    for side, seconds in now.items():
        if spent := seconds - before[side]:
            metrics["time/compile"] = metrics.get("time/compile", 0.0) + spent
            metrics[f"time/{side}"] = max(0.0, metrics[f"time/{side}"] - (seconds - last_try[side]))


def on_host(tokens: StepTokens) -> StepTokens:
    """Returns a step's tokens in the host's memory: one wait for the device, and none for all that is asked of them."""
    columns = torch.stack([getattr(tokens, field.name) for field in fields(tokens)])
    return StepTokens(*columns.cpu())


def describe(tokens: StepTokens, objective: Objective, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Returns what a step learnt about the tokens of its rollouts, which are on the host, as metrics."""
    near = closeness(tokens.log_p, tokens.log_q, loss_lengths(rollouts, objective.stops))
    facts = {
        "kl/train": near.kl,
        "kl/train_error": near.kl_error,
        **distribution("reward", tokens.reward),
        **distribution("log_ratio", tokens.log_p - tokens.log_q),
        "reward/positive_share": (tokens.reward > 0).double().mean().item(),
        "logprob/teacher": tokens.log_p.mean().item(),
        "logprob/student": tokens.log_q.mean().item(),
        "entropy": tokens.entropy.mean().item(),
        "sampling/kept_mass": tokens.kept_mass.mean().item(),
    }
    entry, settings = objective.entry, objective.settings
    if entry.cap is not None:
        paid = objective.pay(tokens.log_p, tokens.log_q)  # before a baseline
        facts["reward/capped_share"] = (paid >= settings[entry.cap]).double().mean().item()
    if not objective.part.counts_all:
        facts["part/in_loss_share"] = (tokens.part > 0).double().mean().item()
        facts["part/mean"] = tokens.part[tokens.part > 0].mean().item()
    if entry.pay is not None:  # else the teacher sees every id, kept or not
        facts["sampling/added_share"] = tokens.added.mean().item()
    if objective.importance_cap is not None:
        facts["importance/mean"] = objective.importance(tokens.log_q, tokens.engine).mean().item()
        capped = (tokens.log_q - tokens.engine).nan_to_num(0.0).exp() > objective.importance_cap
        facts["importance/capped_share"] = capped.double().mean().item()
    return facts


class JsonLines:
    """A file with one object a line, in the order of the steps: `metrics.jsonl` and `samples.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> str | None:
        """Drops every line after `step`: a resumed run writes them again. A line cut by a kill goes too.

        Lines end at "\\n" alone: a sampled text may hold other characters that Python counts as line ends. Where a line in
        the middle can't be read, the whole file is kept beside this one, which holds what can be; returns what to say of it.
        """
        whole = self.path.read_bytes() if self.path.exists() else b""
        kept, unreadable = [], 0
        for line in whole.split(b"\n")[:-1]:
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line.decode() + "\n")
            except (ValueError, LookupError, TypeError):
                unreadable += 1
        aside = None
        if unreadable:
            aside = self.path.rename(free_folder(self.path.parent, f"damaged_{self.path.name}") / self.path.name)
        write_text(self.path, "".join(kept))
        return f"{unreadable} lines of {self.path} can't be read; the file is kept as {aside}" if aside else None

    def write(self, step: int, values: dict) -> None:
        """Appends one line. A number that JSON does not have (NaN, infinity) is written as its name, a string."""
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()}
        append_text(self.path, json.dumps({"step": step, **clean}, allow_nan=False, ensure_ascii=False) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Returns every line."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]]

    def sync(self) -> None:
        """Brings every line to the disk, before a checkpoint says that they are there."""
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


class Progress:
    """The live line: a bar on a terminal, twenty plain lines a run elsewhere. (In a notebook: live.py.)"""

    def __init__(self, total: int, start: int) -> None:
        from tqdm import tqdm

        self.total, self.live, self.unread = total, sys.stderr.isatty(), False
        self.every = max(1, total // 20)
        self.bar = tqdm(
            total=total, initial=start, desc="train", unit="step", disable=not self.live, dynamic_ncols=True
        )

    def step(self, step: int, metrics: dict[str, float], left: float) -> None:
        """Shows step `step` (from 1), and that about `left` seconds are to come."""
        facts = {
            "loss": f"{metrics.get('loss', 0.0):+.4f}",
            "reward": f"{metrics.get('reward/mean', 0.0):+.3f}",
            "KL": f"{metrics.get('kl/train', math.nan):.3f}",
            "grad": f"{metrics.get('optim/grad_norm', 0.0):.3f}",
            "tok/s": f"{metrics['time/tokens_per_second']:.0f}",
        }
        if self.live:
            self.bar.set_postfix(facts, refresh=False)
            self.bar.update()
        elif step % self.every == 0 or step == self.total:
            text = "  ".join(f"{k} {v}" for k, v in facts.items())
            self._print(f"step {step}/{self.total}  {text}  ETA {clock(left)}")

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
            self._print(text)

    def _print(self, text: str) -> None:
        """Prints a line. Where its reader is gone (`| head`, a Ctrl-C that ends `| tee` too) it sets `unread`, at which the run ends
        as at a signal: after the step in hand, saved.
        """
        try:
            print(text, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.unread = True

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


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
            for tracker in self.accelerator.trackers:  # (end_training would end the processes' group, too)
                tracker.finish()


BINS = 100  # of the histogram
POSITIONS = 64  # bins of a completion, at most
AT_FIRST, EVERY = 10, 10  # kept at each of the first steps, then at every tenth and the last


def due(step: int, steps: int) -> bool:
    """Whether the tokens of `step` (from 1) of a run of `steps` are kept."""
    return step <= AT_FIRST or step % EVERY == 0 or step == steps


def token_stats(rewards: Tensor, lengths: Sequence[int], bounds: tuple[float, float], longest: int) -> dict[str, Any]:
    """Returns counts, sums and extremes of a step's N rewards [N], as JSON.

    `lengths` are the tokens of each rollout, in order, whose sum is N; `longest` is the most that a completion may have. Bin i
    of the histogram is [low + i w, low + (i + 1) w), the last one closed; bin i of the positions holds the places (from 0)
    from i position_width on. A reward that is not finite is counted in `not_finite` and nowhere else.
    """
    low, high = bounds
    values = rewards.detach().double().cpu()
    places = torch.cat([torch.arange(n) for n in lengths])
    finite = values.isfinite()
    values, places = values[finite], places[finite]
    inside = values[(values >= low) & (values <= high)]
    bins = ((inside - low) / (high - low) * BINS).long().clamp_max(BINS - 1)
    width = math.ceil(longest / POSITIONS)
    slots, count = places // width, math.ceil(longest / width)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, slots, values)
    least, most = (
        torch.zeros(count, dtype=torch.float64).scatter_reduce_(0, slots, values, f"a{end}", include_self=False)
        for end in ("min", "max")
    )
    return {
        "low": low,
        "high": high,
        "counts": torch.bincount(bins, minlength=BINS).tolist(),
        "below": int((values < low).sum()),
        "above": int((values > high).sum()),
        "not_finite": int((~finite).sum()),
        "position_width": width,
        "position_count": torch.bincount(slots, minlength=count).tolist(),
        "position_sum": [rounded(x) for x in sums.tolist()],
        "position_min": [rounded(x) for x in least.tolist()],
        "position_max": [rounded(x) for x in most.tolist()],
    }


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """Returns the text of each token; a character that several tokens spell is the last one's, the others are empty."""
    texts, pending = [], []
    for token in ids:
        pending.append(token)
        text = decode(pending)
        if text.endswith("\ufffd") and len(pending) < 4:  # UTF-8 spells a character in up to four bytes
            texts.append("")
        else:
            texts.append(text)
            pending = []
    return texts


def number_in(value: float | str) -> float | None:
    """Returns a number of metrics.jsonl; None for one that is there by its name alone."""
    return None if isinstance(value, str) else value


def rounded(value: float) -> float | None:
    """Returns a number in six significant digits; None for one that JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
