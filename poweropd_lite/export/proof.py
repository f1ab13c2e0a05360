"""What must hold before an export is handed over, in next-token log-probs on fixed texts, all in float32 arithmetic.

The merge without rounding says what the live adapter says; the export, read back as a user would load it, says it too,
within the format's rounding, and keeps what the adapter changed. (That the weights are the trained ones: source.py.)
"""

from dataclasses import asdict, dataclass
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.models.probe import Probe

EXACT = (1e-5, 1e-4)  # nats, mean and largest: what float32 sums in another order may differ by in a small model
NOISES = (5, 5)  # times the model's own noise (probe.noise, of one text), where that is more
# The most that a format may be off the live adapter on average, nats, and the largest of all differences. (That the file
# is the merge rounded once was compared bit for bit. Thirty layers' bfloat16 rounding alone is 0.05.)
LIMITS = {
    "float32": EXACT, "float16": (0.05, 2.0), "bfloat16": (0.25, 6.0), "q8_0": (0.3, 8.0), "nf4": (2.0, 20.0),
    "llama.cpp": (2.0, 20.0),
}  # fmt: skip
KEPT = (0.5, 1.5)  # of the adapter's effect


@dataclass(frozen=True)
class Gap:
    """How far two models' log-probs are apart, nats."""

    mean: float
    largest: float

    def exceeds(self, limits: tuple[float, float]) -> bool:
        """Whether it is more than `limits` of mean and largest difference, or no number."""
        return not (self.mean <= limits[0] and self.largest <= limits[1])

    def __str__(self) -> str:
        return f"{self.mean:.3g} nats on average and {self.largest:.3g} at most"


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
    """Returns limits of mean and largest difference, raised to a part in `parts` of the adapter's effect if that is more.

    Large models' sums are less exact than small ones'; what matters is that the error is small beside what was learnt.
    """
    return max(limits[0], effect.mean / parts), max(limits[1], 10 * effect.largest / parts)


def exact(noise: tuple[float, float]) -> tuple[float, float]:
    """Returns the limits of what is equal but for float32's rounding: EXACT, or more for a model of more `noise`."""
    return max(EXACT[0], NOISES[0] * noise[0]), max(EXACT[1], NOISES[1] * noise[1])


def check_merge(merged: Probe, live: Probe, base: Probe, noise: tuple[float, float] = (0.0, 0.0)) -> Gap:
    """Returns how far the unrounded merge is from the live adapter; raises UserError if it is another model."""
    found, limits = gap(merged, live), within(exact(noise), gap(base, live), 500)
    if found.exceeds(limits):
        raise UserError(
            f"the merged weights do not say what the live adapter says: log-probs differ by {found}, and "
            f"{limits[0]:.1g} and {limits[1]:.1g} are allowed; something in this adapter is not merged as PEFT applies "
            "it; type --to adapter"
        )
    return found


def check_export(
    exported: Probe,
    live: Probe,
    base: Probe,
    kind: str,
    notes: list[str],
    rounded: Probe | None = None,
    noise: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """Returns the proof of an export as it goes into export.json; raises UserError if it is not the live model.

    `rounded` is what the base says in the export's format, where that was asked. What a user should know joins `notes`.
    """
    found, effect = gap(exported, live), gap(base, live)
    limits = within(exact(noise), effect, 500) if kind == "float32" else LIMITS[kind]
    share = kept(exported, live, base, rounded or base)
    if found.exceeds(limits):
        raise UserError(
            f"the exported model does not say what the live one says: log-probs are off by {found}, and {kind} may be "
            f"off by {limits[0]:g} and {limits[1]:g}; nothing was handed over. A wider format, or --to adapter, keeps "
            "more"
        )
    can_tell = found.mean <= 2 * effect.mean
    if share is not None and can_tell and not KEPT[0] <= share <= KEPT[1]:
        raise UserError(
            f"the exported model kept {share:.0%} of what the adapter changes: the rounding to {kind} loses most of "
            "it; nothing was handed over. Type --dtype float16 or float32 (merged-16bit), or --to adapter"
        )
    if share is not None and found.mean > effect.mean / 4:
        notes.append(
            f"the rounding to {kind} moves log-probs by {found.mean:.2g} nats on average, the adapter by "
            f"{effect.mean:.2g}: a wider format is nearer to what was trained"
        )
    lost = "within the format's limits, but the adapter's effect is lost in the rounding"
    return {
        "verdict": "proven" if share is None or can_tell else lost,
        "unit": "nats",
        "kind": kind,
        "difference": asdict(found),
        "limit": dict(zip(("mean", "largest"), limits, strict=True)),
        "adapter_effect": asdict(effect),
        "effect_kept": share,
    }
