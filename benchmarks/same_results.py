"""Do two checkouts compute the same? `python benchmarks/same_results.py OLD NEW` (git worktree add makes a second one).

Each trains the bundled pair with the power reward, zscore and full_kl, one thread, evaluates the runs, exports one in every
format of its own and reports on all three. Weights are compared byte for byte; metrics, samples, verdicts and the report's
arrays number for number. Left out are seconds, memory, dates, versions and paths. About ten minutes on one core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REWARDS = ("power", "zscore", "full_kl")
FORMATS = {"adapter": [], "merged-16bit": [], "gguf": ["--gguf-type", "q8_0"]}
# What may differ: how long it took, how much memory, when, with which versions, where, and what is only about the program.
APART = (
    "time",
    "memory",
    "seconds",
    "peak_gib",
    "planned_gib",
    "graded",
    "made",
    "versions",
    "date",
    "folder",
    "base",
    "sources",
)
ROWS_APART = ("seconds a step", "tokens a second", "time in all", "memory ")  # of the report's table


def command(tree: Path, work: Path, *words: str) -> None:
    """Runs one command of a checkout in `work`."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONHASHSEED"] = "0"  # PEFT writes target_modules in a set's order, and the weights' fingerprint reads them
    done = subprocess.run([sys.executable, "-m", *words], cwd=work, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def make(tree: Path, work: Path, steps: int) -> None:
    """Makes everything that is compared."""
    for reward in REWARDS:
        flags = ["--config", "bundled", "--steps", str(steps), "--reward", reward, "--output", reward]
        command(tree, work, "poweropd_lite.train", *flags)
        command(tree, work, "poweropd_lite.evaluate", "--model", reward, "--n", "2", "--output", f"eval-{reward}")
    for to, flags in FORMATS.items():
        command(tree, work, "poweropd_lite.export", "power", "--to", to, *flags, "--output", f"export-{to}")
    command(tree, work, "poweropd_lite.report", *REWARDS, "--output", "report")


def numbers(value: Any) -> Any:
    """Returns a JSON value without what may differ."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items() if not any(k == a or k.startswith(a + "/") for a in APART)}
    if isinstance(value, list):
        return [numbers(v) for v in value if not (isinstance(v, dict) and str(v.get("name")).startswith(ROWS_APART))]
    return value


def differing(old: Any, new: Any, where: str = "") -> list[str]:
    """Returns the places at which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [p for k in keys for p in differing(old.get(k, "absent"), new.get(k, "absent"), f"{where}/{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [p for i, pair in enumerate(zip(old, new, strict=True)) for p in differing(*pair, f"{where}/{i}")]
    return [] if old == new else [where]


def read(file: Path) -> Any:
    """Returns what a file holds, as it is compared."""
    if file.suffix == ".jsonl":
        return [numbers(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return numbers(json.loads(file.read_text(encoding="utf-8"))) if file.suffix == ".json" else file.read_bytes()


def compare(old: Path, new: Path) -> bool:
    """Prints how every file of the two folders compares; returns whether all are the same."""
    names = [f"{r}/{file}" for r in REWARDS for file in ("adapter/adapter_model.safetensors", "adapter/reference.json")]
    names += [f"{r}/{name}.jsonl" for r in REWARDS for name in ("metrics", "tokens", "samples")]
    names += [f"{r}/summary.json" for r in REWARDS]
    names += [str(f.relative_to(old)) for f in sorted(old.glob("*/checkpoints/*/*.safetensors"))]
    names += [f"eval-{r}/{file}" for r in REWARDS for file in ("bundled.jsonl", "results.json")]
    names += [str(f.relative_to(old)) for f in sorted(old.glob("export-*/*")) if f.suffix in (".safetensors", ".gguf")]
    names.append("report/report.json")
    same = True
    for name in names:
        there = (new / name).is_file()
        places = differing(read(old / name), read(new / name)) if there else ["(absent)"]
        same = same and not places
        print(f"{'same' if not places else 'DIFFERS':8}{name}" + (f"  at {', '.join(places[:8])}" if places else ""))
    return same


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder, name) for name in ("old", "new")]
        for tree, side in zip((args.old, args.new), sides, strict=True):
            side.mkdir()
            make(tree.resolve(), side, args.steps)
        return 0 if compare(*sides) else 1


if __name__ == "__main__":
    sys.exit(main())
