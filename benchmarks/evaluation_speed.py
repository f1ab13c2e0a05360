"""Evaluation through the built-in loop, side by side in one run: lines that are begun again, and batch by batch.

    python benchmarks/evaluation_speed.py

The 41.6 M Qwen3 of rollout_speed.py (random weights, a LoRA adapter), whose answers end after 40 tokens on average, 128 at
most: 128 prompts, 32 at once, temperature 1. Both ways alternate and must give the same ids, but where two neighbours of
32,000 ids that are all about as likely are a rounding tie. "Computed" is what steps compute, lines times steps, over the
tokens that were needed: by the loop that drops lines (a CPU's), and by the one of fixed shapes (a card's; here without
graphs). CPU seconds on a CPU, the clock's on a card.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rollout_speed import case, make_model

from poweropd_lite.checks.machine import compute_dtype
from poweropd_lite.engines import refill
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import EVALUATION, Draws
from poweropd_lite.models.student import load_student

LINES, COUNT = 32, 128


def main() -> None:
    """Measures both ways in both loops and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        config, prompts, stops, longest = case("41.6 M", Path(folder))
        torch.set_num_threads(config.threads or 1)
        student = load_student(config, device, compute_dtype(config.dtype, device))
    torch.manual_seed(0)
    with torch.no_grad():  # an adapter that does something
        for p in student.trainable().values():
            p.add_(torch.randn_like(p), alpha=0.002)
    engine = LoopEngine(student, stops, print)
    engine.sync()
    asked = [prompts[i % len(prompts)] for i in range(COUNT)]
    draws = Draws(0, EVALUATION, 0, tuple(range(COUNT)))
    engine.sample(asked[:8], draws.of(range(8)), Sampling(), 8)
    computed, real = [], engine.decoder.step

    def step(token, *rest):
        computed.append(len(token))
        return real(token, *rest)

    if not engine.graphs:  # a captured step is not counted
        engine.decoder.step = step
    ways = {
        "refilled": lambda: engine.stream(asked, draws, Sampling(), longest, LINES),
        "batches": lambda: refill.in_batches(engine.sample, asked, draws, Sampling(), longest, LINES),
    }
    print(
        "| loop | lines | seconds | useful tokens/s | computed | batches' seconds over these |\n|---|---|---|---|---|---|"
    )
    for name, fixed in (("fixed shapes", True),) if engine.fixed else (("dropping", False), ("fixed shapes", True)):
        engine.fixed = fixed
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        share, ids = {}, {}
        for _ in range(repeats):
            for way, stream in ways.items():
                computed.clear()
                started = clock()
                found = {i: r.completion_ids for told in stream() for i, r in told.rollouts}
                seconds[way].append(clock() - started)
                ids[way] = [found[i] for i in range(COUNT)]
                share[way] = sum(computed) / sum(len(r) - 1 for r in found.values())
        pairs = [(a, b) for a, b in zip(*ids.values(), strict=True) if a != b]
        apart = [next(abs(x - y) for x, y in zip(a, b, strict=False) if x != y) for a, b in pairs]
        assert device.type == "cuda" or (len(pairs) < COUNT // 10 and set(apart) <= {1}), apart
        tokens = sum(map(len, ids["refilled"]))
        for way in ways:
            best = min(seconds[way])
            ratio = min(seconds["batches"]) / best
            said = f"{share[way]:.2f}" if share[way] else "-"
            print(f"| {name} | {way} | {best:.2f} | {tokens / best:,.0f} | {said} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
