"""A trained language model put back into the checkpoint of text and images (`...ForConditionalGeneration`) that it was taken from.

A merged one is a copy of the base's own files, where the tensors that training changed are written over, each in the dtype
that it has there. An adapter gets the names that its modules have in the whole, on which PEFT loads it.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.check import Tick, check_equal, check_names
from poweropd_lite.export.job import Job
from poweropd_lite.export.shards import INDEX, Checkpoint, replace_rows, row_blocks
from poweropd_lite.export.source import Source
from poweropd_lite.models.loading import explained_load
from poweropd_lite.models.saved import PREFIX
from poweropd_lite.models.whole import own_name

# What a whole has beside its weights, tokenizer and generation config.
_BESIDE = (
    "config.json",
    INDEX,
    *(f"{kind}_config.json" for kind in ("processor", "preprocessor", "video_preprocessor")),
)


def write_whole(job: Job, folder: Path, source: Source, tick: Tick) -> None:
    """Writes the base's files with the changed tensors rounded once; raises UserError for a tensor that they have not."""
    from transformers.utils import cached_file

    if any(name != origin for name, (origin, _) in source.tensors.items()):
        raise UserError(
            f"the adapter unties head and embedding, which are one matrix in the {job.whole} of {job.target.base}; type --to adapter"
        )
    stored = Checkpoint(job.target.base).tensors
    if absent := sorted(set(source.changes) - set(stored)):
        raise UserError(
            f"the adapter changes {absent[0]}, which the files of {job.target.base} don't hold; type --to adapter"
        )
    for name in _BESIDE:
        if there := cached_file(job.target.base, name, _raise_exceptions_for_missing_entries=False):
            shutil.copyfile(there, folder / name)
    for file in {tensor.file for tensor in stored.values()}:
        shutil.copyfile(file, folder / file.name)
    for done, name in enumerate(source.changes, 1):
        tensor = stored[name]
        replace_rows(
            folder / tensor.file.name, tensor.key, (_narrow(rows, tensor.dtype, name) for rows in source.blocks(name))
        )
        tick("merging", done, len(source.changes))


def check_whole(job: Job, folder: Path, source: Source, tick: Tick) -> int:
    """Returns how many tensors were read back: the changed ones are the merge rounded once, all others the base's, bit for bit."""
    written, stored = Checkpoint(str(folder)), Checkpoint(job.target.base)
    check_names(set(written.tensors), set(stored.tensors))
    for done, (name, tensor) in enumerate(stored.tensors.items(), 1):
        changed = source.blocks(name) if name in source.changes else None
        for rows in row_blocks(tensor.shape):
            wanted = stored.rows(name, rows) if changed is None else _narrow(next(changed), tensor.dtype, name)
            check_equal(
                name, torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (written.rows(name, rows), wanted)))
            )
        tick("reading back", done, len(stored.tensors))
    return len(stored.tensors)


def _narrow(rows: Tensor, dtype: str, name: str) -> Tensor:
    narrow = rows.to(getattr(torch, dtype))
    if not narrow.isfinite().all():
        raise UserError(f"{name} has numbers that {dtype} can't hold; type --to adapter")
    return narrow


def load_whole(job: Job) -> Any:
    """Returns the whole checkpoint by its own class, as a user of the adapter loads it."""
    import transformers

    with explained_load(job.target.base, "model", f"{job.whole}"):
        kind: Any = getattr(transformers, str(job.whole))
        return kind.from_pretrained(job.target.base, dtype=job.stored_dtype, attn_implementation="sdpa").eval()


def adapter_of_whole(
    whole: Any, weights: dict[str, Tensor], saved: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an adapter's tensors and settings by the names that its modules have in the whole.

    `target_modules` becomes a pattern of exactly those modules, under either name: the whole's other parts have modules of
    the same last names, and an adapter that is exported is opened here again on the language model.
    """
    theirs = {own_name(name): name for name, _ in whole.named_modules()}
    renamed, modules = {}, set()
    for name, weight in weights.items():
        module, dot, rest = name.removeprefix(PREFIX).partition(".lora_")
        if dot:
            modules.add(module)
        else:  # trained whole
            module, dot, rest = module.rpartition(".")
        renamed[f"{PREFIX}{theirs[module]}{dot}{rest}"] = weight
    names = {*modules, *(theirs[module] for module in modules)}
    pattern = "|".join(sorted({re.sub(r"\d+", r"\\d+", re.escape(name)) for name in names}))
    if {name for name, _ in whole.named_modules() if re.fullmatch(pattern, name)} != names - modules:
        pattern = "|".join(map(re.escape, sorted(names)))
    patterns = {
        key: {name.removeprefix("model."): value for name, value in (saved.get(key) or {}).items()}
        for key in ("rank_pattern", "alpha_pattern")
    }
    none = dict.fromkeys(("task_type", "exclude_modules", "layers_to_transform", "layers_pattern"))
    loaded_by = {"base_model_class": type(whole).__name__, "parent_library": type(whole).__module__}
    return renamed, saved | patterns | none | {"target_modules": pattern, "auto_mapping": loaded_by}
