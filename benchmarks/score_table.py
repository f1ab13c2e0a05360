"""The README's table: what truncated sampling and the score do to each reward, on the bundled pair, three seeds.

    python benchmarks/score_table.py --out runs/score_table

Forty-two runs of 100 steps through the train command, two at a time (one thread each): about half an hour on two cores.
What is finished is not run again and what was stopped is resumed, so the same command goes on. Prints the Markdown table.
Flags of the train command may follow: `--rewards log_ratio --columns 2 --lr 4e-3`.
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


def run(path: Path, reward: str, column: str, seed: int, flags: list[str]) -> None:
    """Trains one cell of the table, or what is left of it."""
    if (path / "summary.json").exists() and json.loads((path / "summary.json").read_text())["finished"]:
        return
    command = [sys.executable, "-m", "poweropd_lite.train"]
    if (path / "config.yaml").exists():
        command += ["--resume", str(path)]
    else:
        command += ["--config", "bundled", "--steps", str(STEPS), "--eval-every", "0", "--seed", str(seed)]
        command += ["--output", str(path), *REWARDS[reward], *COLUMNS[column], *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout.splitlines() if done.returncode == 0 else [done.stderr.strip()[-300:]]
    after = [line for line in said if line.startswith("  after")] or said[-1:]
    print(f"{path.name}: {after[0].strip()}", file=sys.stderr, flush=True)


def cell(paths: list[Path]) -> str:
    """Returns a cell: final Avg@8 with its spread over seeds, share that stops, largest gradient norm of all steps."""
    accuracy, stops, norms = [], [], []
    for path in paths:
        summary = json.loads((path / "summary.json").read_text())
        accuracy.append(100 * summary["accuracy_after"])
        stops.append(100 * summary["evaluation_after"]["stop_share"])
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        norms += [float(line["optim/grad_norm"]) for line in lines if "optim/grad_norm" in line]
    spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
    return f"{statistics.mean(accuracy):.1f} ± {spread:.1f} / {statistics.mean(stops):.0f}% / {max(norms):.2f}"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Other flags go to the train command.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS), help="default: all")
    parser.add_argument("--columns", type=int, default=len(COLUMNS), help="how many of the three, from the left")
    args, flags = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    columns = list(COLUMNS)[: args.columns]
    cells = {(r, c): [folder(args.out, r, c, s) for s in SEEDS] for r in args.rewards for c in columns}
    jobs = {path: (*key, seed) for key, paths in cells.items() for seed, path in zip(SEEDS, paths, strict=True)}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda path: run(path, *jobs[path], flags), jobs))
    missing = [path.name for path in jobs if not (path / "summary.json").exists()]
    if missing:
        sys.exit(f"not finished: {', '.join(missing)}; the same command goes on")
    print(f"| reward | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for reward in args.rewards:
        print(f"| `{reward}` | {' | '.join(cell(cells[reward, column]) for column in columns)} |")


if __name__ == "__main__":
    main()
