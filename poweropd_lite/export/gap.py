"""How far two models' next-token log-probs are apart, and how far they may be."""

from dataclasses import dataclass

from poweropd_lite.models.probe import Probe

EXACT = (1e-5, 1e-4)  # nats, mean and largest: what float32 sums in another order may differ by
# The most that a format may be off the live adapter on average, nats, and the largest of all differences.
LIMITS = {
    "float32": EXACT,
    "float16": (0.01, 0.5),
    "bfloat16": (0.05, 2.0),
    "q8_0": (0.1, 4.0),
    "nf4": (1.0, 15.0),
    "llama.cpp": (1.0, 15.0),
}
KEPT = (0.5, 1.5)  # of the adapter's effect


@dataclass(frozen=True)
class Gap:
    """How far two models' log-probs are apart, nats."""

    mean: float
    largest: float


def gap(first: Probe, second: Probe) -> Gap:
    """Returns the difference of two probes of the same texts and ids."""
    difference = (first.values - second.values).abs()
    return Gap(difference.mean().item(), difference.max().item())


def kept(exported: Probe, live: Probe, base: Probe, rounded: Probe) -> float | None:
    """Returns the share of the adapter's effect that an export kept: 1 for all, 0 for none; None if there is no effect.

    The least-squares slope of (export - rounded base) on (live - base): rounding that has nothing to do with the effect
    leaves it. `rounded` is the base in the export's format, or the base itself.
    """
    effect = live.values - base.values
    size = effect.square().sum().item()
    return None if size == 0 else (effect @ (exported.values - rounded.values)).item() / size


def within(limits: tuple[float, float], effect: Gap, parts: int) -> tuple[float, float]:
    """Returns limits of mean and largest difference, raised to one part in `parts` of the adapter's effect where that is more.

    Large models' sums are less exact than small ones'; what matters is that the error is small beside what was learnt.
    """
    return max(limits[0], effect.mean / parts), max(limits[1], 10 * effect.largest / parts)
