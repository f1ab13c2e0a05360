"""What writing down a step's rewards costs: seconds of it beside the seconds of the steps themselves, in one run.

    python benchmarks/report_cost.py

Trains the bundled pair (a step is half a second there) with a clock around what the report needs: token statistics, the coloured
samples, their lines on the disk. Then the statistics alone at the size of the paper's step: 32 completions of 1,024 tokens.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.run.metrics import token_stats
from poweropd_lite.run.recorder import Recorder
from poweropd_lite.train import train


def main() -> None:
    """Runs both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    spent: dict[int, float] = {}
    taken: dict[int, float] = {}

    def clocked(name):
        real = getattr(Recorder, name)

        def timed(self, *args):
            started = time.perf_counter()
            real(self, *args)
            step = self.state.step
            spent[step] = spent.get(step, 0.0) + time.perf_counter() - started

        setattr(Recorder, name, timed)

    real_step = Recorder.step

    def step(self, rollouts, metrics, rewards):
        taken[self.state.step + 1] = metrics["time/step"]
        real_step(self, rollouts, metrics, rewards)

    clocked("_write_tokens")
    clocked("_write_sample")
    Recorder.step = step
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(load_config("bundled", steps=steps, eval_every=0, eval_benchmarks=None, output=str(run)))
        size = (run / "tokens.jsonl").stat().st_size
    kept = [step for step in taken if spent.get(step, 0.0) > 1e-4]
    whole = sum(spent.get(step, 0.0) for step in taken) / sum(taken.values())
    worst = max(kept, key=lambda step: spent[step] / taken[step])
    print(
        f"\n{steps} steps in {sum(taken.values()):.1f} s, rewards of {len(kept)} of them written down ({size / 1024:.0f} KiB)"
    )
    print(
        f"of the steps' time: {whole:.2%} in all, {spent[worst] / taken[worst]:.2%} of the dearest step ({worst}: {1000 * spent[worst]:.1f} ms)"
    )

    rewards = torch.rand(32 * 1024) * 2 - 1
    started = time.perf_counter()
    for _ in range(20):
        token_stats(rewards, [1024] * 32, (-1.0, 1.0), 1024)
    print(f"32 x 1,024 tokens: {1000 * (time.perf_counter() - started) / 20:.1f} ms a step that is kept")


if __name__ == "__main__":
    main()
