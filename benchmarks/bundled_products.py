"""How much of a training step of the bundled pair is matrix products, and how near they are to what one core gives.

    python benchmarks/bundled_products.py [--steps 30]

After some steps one more is profiled, its rollouts and its update apart. A core's best is a product of 2,048 x 2,048. One thread.
"""

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from poweropd_lite.base.config import load_config
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import accumulate, take_step
from poweropd_lite.run.session import load_session, prepare


def best(repeats: int = 20) -> float:
    """Returns the floating-point operations a second of a large float32 product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return 2 * 2048**3 * repeats / (time.perf_counter() - started)


def products(found: profile, peak: float) -> str:
    """Returns the share of a profile's CPU time that is products, and their rate beside `peak`."""
    rows = found.key_averages()
    whole = sum(row.self_cpu_time_total for row in rows)
    mine = [row for row in rows if row.key in ("aten::mm", "aten::addmm", "aten::bmm")]
    seconds = sum(row.self_cpu_time_total for row in mine) / 1e6
    rate = sum(row.flops for row in mine) / seconds
    return f"{1e6 * seconds / whole:.0%} of {whole / 1e3:.0f} ms, at {rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s"


def main() -> None:
    """Trains, profiles one step and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    config = load_config("bundled", eval_benchmarks=None, threads=1)
    ready = prepare(config, print)
    session = load_session(ready, print)

    def sample(step: int) -> list[Rollout]:
        session.engine.sync()
        return ready.sample(session.engine, step, config.batch_size, session.ranks)

    def update(rollouts: list[Rollout]) -> None:
        budget = config.tokens_at_once
        gradient = accumulate(session.student, session.teacher, rollouts, ready.objective, budget)
        take_step(session.student, session.optimizer, gradient)

    for step in range(args.steps):
        update(sample(step))
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as sampling:
        rollouts = sample(args.steps)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as learning:
        update(rollouts)
    peak = best()
    print(f"products in a step's rollouts: {products(sampling, peak)}")
    print(f"products in its update: {products(learning, peak)}")
    session.close()


if __name__ == "__main__":
    main()
