"""Queues of the reproduce command with the numbers that a test wants, as its runs leave them."""

import csv
import json
from pathlib import Path

from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.reproduce.grid import DONE, run_config
from poweropd_lite.reproduce.settings import split_settings
from poweropd_lite.reproduce.settle import settle
from poweropd_lite.reproduce.state import Queue


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def planted(out: Path, **settings) -> Queue:
    """A queue whose runs are all waiting."""
    asked, training, given = split_settings(settings)
    queue = settle(asked, training, given, None, out)
    queue.save()
    return queue


def plant(queue: Queue, name: str, scores: dict[str, tuple[float, float, float]], mean=None, **metrics) -> None:
    """Writes down a run as done: by benchmark Avg@8, Pass@8 (0 to 1) and length; then what else is in its metrics."""
    task = queue.tasks[name]
    folder = queue.scores_folder(task)
    folder.mkdir(parents=True)
    rows = {
        b: {"avg@8": a, "pass@8": p, "length": x, "truncated": 0.25, "problems": 8, "whole": True}
        for b, (a, p, x) in scores.items()
    }
    means = {f"{key}@8": sum(row[f"{key}@8"] for row in rows.values()) / len(rows) for key in ("avg", "pass")}
    means = {"avg@8": mean[0], "pass@8": mean[1], "length": mean[2], "truncated": 0.25} if mean else means
    write_json(folder / "results.json", {"n": 8, "benchmarks": rows, "mean": means})
    if task.role == "run":
        lines = [
            {"step": i + 1, "tokens/loss": 800, "optim/grad_norm": norm, "time/step": seconds, "time/rollout": seconds / 2, "memory/peak_gib": metrics.get("peak", 9.5) + i,
             "rollout/length": 100, "time/tokens_per_second": 1000.0}
            for i, (norm, seconds) in enumerate(metrics.get("steps", [(0.5, 2.0)]))
        ] + metrics.get("lines", [])  # fmt: skip
        write_text(queue.run_folder(task) / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        write_text(queue.run_folder(task) / "config.yaml", dump_yaml(run_config(queue.pairs[task.pair], task)))
    task.state = DONE
