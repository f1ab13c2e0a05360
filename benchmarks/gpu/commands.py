"""The real commands, one after the other, on random models saved with a tokenizer of Qwen3's size: do they run on a card?

Shapes are Qwen3's (0.6B <- 4B) with fewer layers, so that loading takes seconds. Two random models find every token about as
unlikely, so the reward is log_ratio: the power reward would be all but zero.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from random_models import save

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 150  # of one command


def measure(tiny: bool) -> dict:
    """Returns a row a command: exit code, seconds and, where it failed, its last words; and telling metrics of train's steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = torch.bfloat16
        student = save("tiny-student" if tiny else "0.6b-cut", folder / "student", dtype)
        teacher = save("tiny-teacher" if tiny else "4b-cut", folder / "teacher", dtype)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what follows are other processes
        problems = folder / "problems.jsonl"
        problems.write_text("".join(_problem(i) + "\n" for i in range(64)))
        run, size, new = folder / "run", *(("4", "8") if tiny else ("32", "512"))
        pair = ["--student", student, "--teacher", teacher, "--data", str(problems), "--max-prompt-tokens", "256"]
        pair += ["--batch-size", size, "--max-new-tokens", new, "--reward", "log_ratio", "--loader", "peft"]
        pair += ["--lr", "1e-3"]  # by less a bfloat16 copy would hardly change in three steps, and export refuses that
        model = ["--model", str(run)]
        rows = [
            _row(folder, "train", *pair, "--engine", "loop", "--steps", "2", "--save-every", "1", "--output", str(run)),
            _row(folder, "train", "--resume", str(run), "--steps", "3"),
            _row(folder, "evaluate", *model, "--benchmarks", str(problems), "--problems", "16", "--n", "2",
                 "--max-new-tokens", new, "--engine", "loop"),
            _row(folder, "audit", *pair, "--engine", "loop", "--rollouts", size, "--reference-gib", "0.002" if tiny else "2",
                 "--resamples", "100", "--output", str(folder / "audit")),
            _row(folder, "export", *model, "--to", "merged-16bit"),
            _row(folder, "export", *model, "--to", "gguf", "--gguf-type", "q8_0"),
        ]  # fmt: skip
        lines = (run / "metrics.jsonl").read_text().splitlines() if run.exists() else []
        metrics = [json.loads(line) for line in lines]
    steps = [{k: v for k, v in line.items() if _telling(k)} for line in metrics if "loss" in line]
    return {"rows": rows, "steps": steps}


def _problem(i: int) -> str:
    return json.dumps({"problem": f"What is {i} + {3 * i}?", "answer": str(4 * i)})


def _telling(name: str) -> bool:
    return name.startswith(("time/", "memory/", "parity/")) or name in ("step", "loss", "optim/grad_norm")


def _row(folder: Path, command: str, *flags: str) -> dict:
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"poweropd_lite.{command}", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    took = time.perf_counter() - started
    print(f"$ {command} {' '.join(flags)}\n{done.stdout}", flush=True)
    # (An audit says by code 1 that it found the 4-bit teacher unsound, which of random models it may.)
    failed = done.returncode not in ((0, 1) if command == "audit" else (0,))
    what = command + (" --resume" if "--resume" in flags else "")
    what += f" --to {flags[flags.index('--to') + 1]}" if "--to" in flags else ""
    said = " ".join(done.stdout.split())[-300:] if failed else ""
    return {"command": what, "code": done.returncode, "seconds": took, "failed": said.replace("|", "/")}
