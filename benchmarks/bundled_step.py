"""CPU seconds of a training step of the bundled pair, of this checkout and of another, side by side in one run.

    python benchmarks/bundled_step.py OTHER [--repeats 3]

OTHER is a folder with another commit of the project (`git worktree add OTHER 861967d`). A step's seconds are those of a
run of 45 steps less those of one of 5, by 40: start-up and hand-over fall out. Runs alternate; one thread each.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FEW, MANY = 5, 45


def cpu_seconds(checkout: Path, steps: int, folder: str) -> float:
    """Returns the CPU seconds of a run of the checkout's own code."""
    command = [sys.executable, "-m", "poweropd_lite.train", "--config", "bundled", "--steps", str(steps)]
    command += [
        "--eval-benchmarks",
        "none",
        "--eval-every",
        "0",
        "--guard-every",
        "50",
        "--output",
        f"{folder}/{steps}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_seconds(checkout: Path) -> float:
    """Returns the CPU seconds of one step."""
    with tempfile.TemporaryDirectory() as folder:
        return (cpu_seconds(checkout, MANY, folder) - cpu_seconds(checkout, FEW, folder)) / (MANY - FEW)


def main() -> None:
    """Measures both and prints each repeat and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.repeats):
        theirs, ours = step_seconds(args.other), step_seconds(Path(__file__).parent.parent)
        ratios.append(ours / theirs)
        print(f"other {theirs:.3f} s, this {ours:.3f} s a step: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
