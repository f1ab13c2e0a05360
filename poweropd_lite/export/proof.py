"""What must hold before an export is handed over, in next-token log-probs on fixed texts.

Three comparisons, all in float32 arithmetic: the merge without rounding says what the live adapter says; the export, read back
as a user would load it, says it too, within the format's rounding; and it keeps what the adapter changed of its base.
"""

from dataclasses import asdict
from typing import Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.gap import EXACT, KEPT, LIMITS, Gap, gap, kept, within
from poweropd_lite.export.source import Source
from poweropd_lite.models.probe import Probe


def check_merge(source: Source) -> Gap:
    """Returns how far the unrounded merge is from the live adapter; raises UserError if it is another model."""
    found, effect = gap(source.merged, source.live), gap(source.base, source.live)
    mean, largest = within(EXACT, effect, 500)
    if not (found.mean <= mean and found.largest <= largest):
        raise UserError(
            f"the merged weights do not say what the live adapter says: log-probs differ by {found.mean:.3g} nats on average and {found.largest:.3g} "
            f"at most, and {mean:.1g} and {largest:.1g} are allowed. Something in this adapter is not merged as PEFT applies it; type --to adapter"
        )
    return found


def check_export(exported: Probe, source: Source, kind: str, rounded: Probe | None = None) -> dict[str, Any]:
    """Returns the proof of an export as it goes into export.json; raises UserError if it is not the live model.

    `rounded` is what the base says in the export's format, where that was asked.
    """
    found, effect = gap(exported, source.live), gap(source.base, source.live)
    mean, largest = within(EXACT, effect, 500) if kind == "float32" else LIMITS[kind]
    share = kept(exported, source.live, source.base, rounded or source.base)
    if not (found.mean <= mean and found.largest <= largest):
        raise UserError(
            f"the exported model does not say what the live one says: its next-token log-probs are off by {found.mean:.3g} nats on average and "
            f"{found.largest:.3g} at most, and {kind} may be off by {mean:g} and {largest:g}; nothing was handed over. "
            "A wider format, or --to adapter, keeps more"
        )
    can_tell = found.mean <= 2 * effect.mean
    if share is not None and can_tell and not KEPT[0] <= share <= KEPT[1]:
        raise UserError(
            f"the exported model kept {share:.0%} of what the adapter changes: in {kind} most of its changes are lost in the rounding; "
            "nothing was handed over. Type --dtype float16 or float32 (merged-16bit), or --to adapter"
        )
    if share is not None and found.mean > effect.mean / 4:
        source.notes.append(
            f"the rounding to {kind} moves log-probs by {found.mean:.2g} nats on average, the adapter by {effect.mean:.2g}: a wider format "
            "is nearer to what was trained"
        )
    sure = share is None or can_tell
    return {
        "verdict": "proven" if sure else "within the format's limits, but the adapter's effect is lost in the rounding",
        "unit": "nats",
        "kind": kind,
        "difference": asdict(found),
        "limit": {"mean": mean, "largest": largest},
        "adapter_effect": asdict(effect),
        "effect_kept": share,
    }
