"""The README's table: what truncated sampling and the score do to each reward, on the bundled pair, three seeds.

    python benchmarks/score_table.py --out runs/score_table

Forty-two runs of 100 steps through the train command, two at a time (one thread each): about half an hour on two cores.
A run that is already finished is not run again, so a stopped table goes on. Prints the Markdown table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STEPS, SEEDS = 100, (0, 1, 2)
REWARDS = {
    "log_ratio": ["--reward", "log_ratio"],
    "tanh": ["--reward", "tanh"],
    "full_kl": ["--reward", "full_kl"],
    "power 1": ["--reward", "power", "--alpha", "1"],
    "power 10": ["--reward", "power", "--alpha", "10"],
}
CUT = ["--top-k", "20", "--top-p", "0.95"]
COLUMNS = {
    "no truncation": [],
    "truncated, score full": [*CUT, "--score", "full"],
    "truncated, score sampled": [*CUT, "--score", "sampled"],
}


def folder(out: Path, reward: str, column: str, seed: int) -> Path:
    """Returns a run's folder. full_kl has no score, so its two truncated columns are one run."""
    if reward == "full_kl" and column == "truncated, score sampled":
        column = "truncated, score full"
    return out / f"{reward}-{column}-seed{seed}".replace(" ", "_").replace(",", "")


def run(out: Path, reward: str, column: str, seed: int) -> None:
    """Trains one cell of the table, unless it is there."""
    path = folder(out, reward, column, seed)
    command = [sys.executable, "-m", "poweropd_lite.train"]
    if (path / "config.yaml").exists():
        command += ["--resume", str(path)]
    else:
        command += ["--config", "bundled", "--steps", str(STEPS), "--eval-every", "0", "--seed", str(seed)]
        command += ["--output", str(path), *REWARDS[reward], *COLUMNS[column]]
    if (path / "summary.json").exists() and json.loads((path / "summary.json").read_text())["finished"]:
        return
    done = subprocess.run(command, capture_output=True, text=True)
    tail = done.stdout.strip().splitlines()[-9:] if done.returncode == 0 else [done.stderr.strip()[-300:]]
    after = next((line for line in tail if line.startswith("  after")), " ".join(tail))
    print(f"{path.name}: {after.strip()}", file=sys.stderr, flush=True)


def cell(out: Path, reward: str, column: str) -> str:
    """Returns a cell: final Avg@8 with its spread over seeds, share that stops, largest gradient norm of all steps."""
    accuracy, stops, norms = [], [], []
    for seed in SEEDS:
        path = folder(out, reward, column, seed)
        summary = json.loads((path / "summary.json").read_text())
        accuracy.append(100 * summary["accuracy_after"])
        stops.append(100 * summary["evaluation_after"]["stop_share"])
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        norms += [float(line["optim/grad_norm"]) for line in lines if "optim/grad_norm" in line]
    spread = statistics.stdev(accuracy)
    return f"{statistics.mean(accuracy):.1f} ± {spread:.1f} / {statistics.mean(stops):.0f}% / {max(norms):.2g}"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = {folder(args.out, r, c, s): (r, c, s) for s in SEEDS for r in REWARDS for c in COLUMNS}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: run(args.out, *job), jobs.values()))
    missing = [path.name for path in jobs if not (path / "summary.json").exists()]
    if missing:
        sys.exit(f"not finished: {', '.join(missing)}; the same command goes on")
    print(f"| reward | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for reward in REWARDS:
        print(f"| `{reward}` | {' | '.join(cell(args.out, reward, column) for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
