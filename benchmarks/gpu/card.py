"""What this card does at best: bfloat16 matrix products and copies, measured; the yardstick of every other figure."""

import time

import torch
from shapes import device


def seconds(work, repeats: int) -> float:
    """Returns the mean seconds of `work()`, after a warm-up."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    finish()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    finish()
    return (time.perf_counter() - started) / repeats


def measure(tiny: bool) -> dict:
    """Returns TFLOP/s and GB/s."""
    size, elements, repeats = (256, 1 << 16, 2) if tiny else (8192, 1 << 30, 20)
    where = {"device": device(), "dtype": torch.bfloat16}
    a, b = torch.randn(size, size, **where), torch.randn(size, size, **where)
    source, target = torch.empty(elements, **where), torch.empty(elements, **where)
    return {
        "tflops": 2 * size**3 / seconds(lambda: a @ b, repeats) / 1e12,
        "gb_per_second": 2 * 2 * elements / seconds(lambda: target.copy_(source), repeats) / 1e9,
    }
