"""The model that is exported: its base, its adapter's changes, and what the live model says, as the export must.

The live model is the base with PEFT's adapter on it, unmerged: asked, read and let go before anything is written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.serve import load_target
from poweropd_lite.export.job import Job
from poweropd_lite.export.proof import KEPT, gap, kept, within
from poweropd_lite.export.shards import Checkpoint, row_blocks
from poweropd_lite.models.merge import Change, changes_of
from poweropd_lite.models.probe import Probe, noise, probe, probe_texts, read_reference

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass
class Source:
    """What is exported: the base's files, what the adapter changes, by parameter name, and what the live model says."""

    checkpoint: Checkpoint
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # by name: the base's tensor it is made of, shape
    changes: dict[str, Change]
    live: Probe
    base: Probe  # what the base says without the adapter
    merged: Probe  # what the base says with the changes merged in float32, without any rounding
    tied: bool  # whether head and embedding of the export are one matrix
    notes: list[str]  # what a user should know
    noise: tuple[float, float]  # of float32 sums in `live`, nats, mean and largest

    @property
    def is_zero(self) -> bool:
        """Whether the adapter changes nothing (or there is none)."""
        return all(change.is_zero for change in self.changes.values())

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Gives a tensor of the export in float32, a few rows at a time."""
        origin, shape = self.tensors[name]
        change = self.changes.get(name)
        for rows in row_blocks(shape):
            values = self.checkpoint.rows(origin, rows).float()
            merged = values if change is None else change.rows(values, rows)
            if not merged.isfinite().all():
                raise UserError(
                    f"{name} is not finite after the merge: the base's or the adapter's weights are damaged"
                )
            yield merged

    def ask(self, model: Any) -> Probe:
        """Returns what another model says where the live one was asked."""
        return probe(model, self.live.texts, self.live)


def read_source(job: Job, say: Callable[[str], None]) -> Source:
    """Loads the live model, asks it and reads its adapter; raises UserError for one that is not what was trained."""
    target, notes, merging = job.target, list(job.notes), job.config.to != "adapter"
    checkpoint = Checkpoint(target.base if merging else None)
    stored = job.stored_dtype
    model = _load(job, 16, stored)
    live = base = merged = probe(model, probe_texts(job.vocabulary.tokenizer))
    float32_noise = noise(model, live)
    known, ends, tied = _anatomy(model)
    if merging and (count := _take_renamed(checkpoint, model, ends[1] if tied else "")) and not job.whole:
        notes.append(
            f"the base's files name {count} tensors otherwise than transformers does, as the export names them"
        )
    strange = [] if job.whole else sorted(set(checkpoint.tensors) - known)
    if strange:
        notes.append(
            f"{len(strange)} tensors in the base's files are no part of the model and are left out, such as "
            f"{strange[0]}"
        )
    if odd := sorted(name for name, t in checkpoint.tensors.items() if name in known and not t.dtype):
        raise UserError(f"{odd[0]} of {target.base} is no floating-point tensor, which a merge here can't round")
    changes: dict[str, Change] = {}
    if target.adapter is not None:
        with model.disable_adapter():
            base = probe(model, live.texts, live)
        try:
            changes = changes_of(model)
            uses, was_tied = _uses(model, changes), tied
            tied = _stays_tied(changes, ends, tied)
            with model.disable_adapter():
                merged = probe(model, live.texts, live, uses)
            if was_tied and not tied:
                what = "the adapter changes the embedding or the head alone"
                notes.append(f"{what}, so the two are untied: the export has a head of its own")
        except UserError:
            if merging:
                raise
            changes, merged = {}, live
        if tied:  # one matrix, by the embedding's name
            changes.pop(ends[1], None)
        changes = {name: change.cpu() for name, change in changes.items()}
    tensors, (embedding, head) = {n: (n, t.shape) for n, t in checkpoint.tensors.items() if n in known}, ends
    if tied:
        tensors.pop(head, None)
    elif embedding in tensors:
        tensors.setdefault(head, tensors[embedding])
    source = Source(checkpoint, tensors, changes, live, base, merged, tied, notes, float32_noise)
    if target.adapter is not None or target.run is not None:
        seen = read_reference(target.adapter or Path(target.base))
        trained_on = stored if seen is None else getattr(torch, seen.base_dtype)
        if seen is not None and seen.base_bits == 4:
            del model
            model = _load(job, 4, torch.float32)
            notes.append(
                "the adapter was trained on its base in 4 bits, and is exported on the 16-bit weights of that base, "
                "which it has not seen in training"
            )
        elif trained_on not in (stored, torch.float32):
            del model  # the base was narrowed for training
            model = _load(job, 16, trained_on)
        _check_reference(job, model, source, seen, say)
    if merging and (absent := sorted(set(changes) - set(tensors))):
        raise UserError(
            f"the adapter changes {absent[0]}, which the files of {target.base} don't hold under that name; load the "
            "base with transformers, save it with save_pretrained, and type --base with that folder"
        )
    if target.adapter is not None and merging and source.is_zero:
        notes.append("the adapter is zero: what is exported is its base")
    return source


def _load(job: Job, bits: int, dtype: torch.dtype) -> Any:
    """Any: PEFT's model around transformers', or transformers' own; both answer for the same things."""
    return load_target(job.target, bits, device(), dtype, job.config.trust_remote_code).model


def device() -> torch.device:
    """Where the live model is asked, and so what is compared with it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _original(module: Any) -> Any:
    """The base's own module under what PEFT put around it."""
    return getattr(module, "base_layer", None) or getattr(module, "original_module", None) or module


def _anatomy(model: Any) -> tuple[set[str], tuple[str, str], bool]:
    """Returns the names of a base's weights, those of its embedding and its head, and whether the two are one matrix."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = {name.replace(".base_layer.", ".").replace(".original_module.", ".") for name in base.state_dict()}
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in base.named_modules()}
    return known, (names[id(embedding)], names[id(head)]), _original(embedding).weight is _original(head).weight


def _take_renamed(checkpoint: Checkpoint, model: Any, head: str) -> int:
    """Reads the base's weights from the loaded model where its files lack some under transformers' names; returns how many.

    GPT-NeoX and mixtures of experts: transformers renames or joins what they hold. `head` may be absent: it is tied.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights: dict[str, Tensor] = {}
    for name, tensor in base.state_dict().items():  # buffers too, such as a router's bias
        if "lora_" not in name and ".modules_to_save." not in name and tensor.is_floating_point():
            weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    if head:
        weights.pop(head, None)
    if renamed := set(weights) - set(checkpoint.tensors):
        checkpoint.take({name: weight.cpu() for name, weight in weights.items()})
    return len(renamed)


def _uses(model: "PeftModel", changes: dict[str, Change]) -> dict[tuple[str, int], Change]:
    """Returns the changes by how and where the base uses the weight."""
    base, uses = model.get_base_model(), {}
    for name, change in changes.items():
        original = _original(base.get_submodule(name.rsplit(".", 1)[0]))
        kind = "embedding" if isinstance(original, torch.nn.Embedding) else "linear"
        if not isinstance(original, torch.nn.Embedding | torch.nn.Linear) or not name.endswith(".weight"):
            raise UserError(
                f"the adapter trains {name} whole, and a merge here knows linear layers and embeddings; type --to "
                "adapter"
            )
        uses[kind, id(original.weight)] = change
    return uses


def _stays_tied(changes: dict[str, Change], ends: tuple[str, str], tied: bool) -> bool:
    """Whether head and embedding, one matrix in the base, are still equal with the changes."""
    made = [changes[name].whole for name in ends if name in changes]
    if not tied or not made:
        return tied
    return len(made) == 2 and made[0] is not None and made[1] is not None and torch.equal(made[0], made[1])


def _check_reference(job: Job, model: Any, source: Source, seen: Probe | None, say: Callable[[str], None]) -> None:
    """Raises UserError unless the weights say what training saw of them; says so, or notes that it can't be known."""
    if seen is None:
        source.notes.append(
            "no reference.json lies beside the weights, so only what the files say could be compared, not what "
            "training saw"
        )
        return
    if seen.texts != source.live.texts:
        raise UserError(
            f"the tokenizer of {job.target.name} turns the reference's texts into other ids than in training; put back "
            "the tokenizer that the run handed over"
        )
    now = without = probe(model, seen.texts, seen)
    if job.target.adapter is not None:
        with model.disable_adapter():
            without = probe(model, seen.texts, seen)
    found, effect = gap(now, seen), gap(without, seen)
    # Half precision rounds, and 4-bit kernels differ from device to device.
    exact = seen.arithmetic == "float32" and seen.base_bits == 16
    limits = within((1e-4, 2e-3), effect, 200) if exact else (0.15, 4.0)
    # Under a wide limit another adapter, or none, could hide: the effect must be the one that was trained.
    share = kept(now, seen, without, without) if job.target.adapter is not None else None
    other = share is not None and effect.mean > limits[0] / 2 and not KEPT[0] <= share <= KEPT[1]
    if found.exceeds(limits) or other:
        raise UserError(
            f"the weights in {job.target.adapter or job.target.base} do not say what they said at the end of training: "
            f"log-probs are off by {found}, and {limits[0]:.2g} on average is allowed. Weights, lora_alpha, rank or "
            f"base ({job.target.base}) are not the run's; export the run's own folder, with --base for the right base"
        )
    nearly = "nearly " * (found.largest > 1e-4)  # another machine's sums, or a change too small to be refused
    say(f"the weights say {nearly}what training saw: log-probs within {found.largest:.1e} nats")
