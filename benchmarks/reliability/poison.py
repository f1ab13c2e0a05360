"""NaN, infinity and overflow in weights, logits, loss, lr, alpha and the other numbers: no poisoned adapter.

`python benchmarks/reliability/poison.py`: a run with a poisoned model, row or setting ends well, having counted the steps that it
dropped; or gives up (code 1); or refuses with one message (code 2). What it leaves behind, adapter and checkpoints, holds
finite numbers within their bounds, and steps that were dropped left the weights as they were.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trials
from card import faulted
from safetensors.torch import load_file, save_file
from trials import ROOT, TRAIN, Folders, Tally, one_message, run

from poweropd_lite.run.bounds import LARGEST

TINY = ROOT / "poweropd_lite" / "tiny"
VALUES = {"NaN": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "1e38": 1e38, "1e20": 1e20}
WEIGHTS = ("embed_tokens", "layers.0.mlp.up_proj", "layers.1.self_attn.q_proj", "norm")
NUMBERS = ("nan", "inf", "-inf", "0", "-1", "1e-320", "1e-300", "1e300", "1e38", "1e30", "1e6", "1e400")
SETTINGS = ("lr", "alpha", "lora-alpha", "max-grad-norm", "temperature", "top-p", "importance-cap")
REWARDS = [("clip-limit", "clip"), ("tau", "tanh")]


def poisoned_model(role: str, weight: str, value: float, folder: Path) -> str:
    """Writes a copy of a bundled model with one number of one weight changed; returns its folder."""
    copy = folder / role
    shutil.copytree(TINY / role, copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in sorted(tensors) if weight in name)
    tensors[name].view(-1)[7] = value
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return str(copy)


def wrong_with(done: Any, folder: Path) -> str | None:
    """Returns what is wrong with how a poisoned run ended, or with what it left."""
    if done.returncode == 2:
        if fault := one_message(done):
            return fault
    elif done.returncode not in (0, 1) or "Traceback" in done.stderr:
        return f"code {done.returncode}: {done.stderr[-400:]}"
    for file in (folder / "run").rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            largest = tensor.abs().max().item() if tensor.is_floating_point() and tensor.numel() else 0.0
            if not largest < float("inf") or (file.name != "optimizer.safetensors" and not largest <= LARGEST):
                return f"{file.relative_to(folder)} holds {largest} in {name}"
    if not (folder / "run" / "summary.json").is_file():
        return None if done.returncode == 2 else "no summary"
    summary = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))
    lines = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines if '"optim/skipped"' in line]
    dropped = [step for step in steps if step["optim/skipped"]]
    odd = [
        s["step"]
        for s in steps
        if s not in dropped and any(isinstance(s.get(k), str) for k in ("loss", "optim/grad_norm"))
    ]
    if len(dropped) != summary["dropped_steps"] or odd:
        return f"{len(dropped)} dropped steps, {summary['dropped_steps']} counted, not dropped though not finite: {odd}"
    return None


def cases() -> list[tuple[str, Callable[[Path], Any]]]:
    """Returns what is tried, by name."""
    found: list[tuple[str, Callable[[Path], Any]]] = []

    def model(role: str, weight: str, value: float) -> Callable[[Path], Any]:
        return lambda folder: run(*TRAIN, f"--{role}", poisoned_model(role, weight, value, folder), cwd=folder)

    def setting(*words: str) -> Callable[[Path], Any]:
        return lambda folder: run(*TRAIN, *words, cwd=folder)

    def row(phase: str, fault: str, call: int, times: int) -> Callable[[Path], Any]:
        plan = {"phase": phase, "fault": fault, "call": call, "times": times}
        return lambda folder: faulted(plan, folder)

    for role in ("student", "teacher"):
        found += [(f"{name} in the {role}'s {w}", model(role, w, v)) for w in WEIGHTS for name, v in VALUES.items()]
    for phase in ("student", "teacher", "backward"):
        for fault, times in ((fault, times) for fault in ("nan", "inf", "huge") for times in (1, 100)):
            found.append((f"{fault} in a row of {phase}, {times}x", row(phase, fault, 1, times)))
    found += [(f"--{name} {n}", setting(f"--{name}={n}")) for name in SETTINGS for n in NUMBERS]
    found += [
        (f"--{name} {n}", setting(f"--{name}={n}", "--reward", reward)) for name, reward in REWARDS for n in NUMBERS
    ]
    for n in ("1e-300", "1e-30", "1e6"):
        found += [(f"--alpha {n} --score full", setting("--alpha", n, "--score", "full", "--top-k", "2"))]
        found += [(f"--lr {n} --full-finetune", setting("--lr", n, "--full-finetune"))]
        found += [(f"--lr {n} --reward full_kl", setting("--lr", n, "--reward", "full_kl"))]
    return found


def main() -> int:
    """The command line."""
    args = trials.parser(__doc__.splitlines()[0], 1000, 16).parse_args()
    tally = Tally(
        "poison", bool(args.short), "NaN, inf, overflow in student, teacher, adapter, logits, loss, lr, alpha"
    )
    tried = cases()
    codes: dict[str, int] = {}
    with Folders() as folders:
        for name, start in tried[:: max(1, len(tried) // args.short)] if args.short else tried[: args.tries]:
            folder = folders.new()
            done = start(folder)
            codes[str(done.returncode)] = codes.get(str(done.returncode), 0) + 1
            tally.tell(wrong_with(done, folder), name)
            shutil.rmtree(folder)
        tally.more = {"exit_codes": codes}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
