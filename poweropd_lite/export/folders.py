"""The formats that transformers and PEFT load: adapter, merged in 16 bits, merged in NF4. Each is written, then read back.

A writer fills a folder; its reader loads that folder as a user would and returns what the loaded model says.
"""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.export.job import Job
from poweropd_lite.export.shards import INDEX, SINGLE, Checkpoint, ShardWriter, row_blocks
from poweropd_lite.export.source import Source, device
from poweropd_lite.models.loading import load_causal_lm, nf4, stay_unpacked
from poweropd_lite.models.probe import REFERENCE, Probe, probe

Tick = Callable[[str, int, int], object]


def write_common(job: Job, folder: Path) -> None:
    """Writes the tokenizer with its chat template, and a generation config that stops where the student was taught to."""
    from transformers import GenerationConfig

    tokenizer = job.vocabulary.tokenizer
    for ours in ("local_files_only", "is_local"):  # how it was loaded here, which transformers would write down
        tokenizer.init_kwargs.pop(ours, None)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library has no kinds of its own for a full disk
        raise UserError(f"can't write the tokenizer: {error}") from None
    try:
        generation = GenerationConfig.from_pretrained(job.target.base)
    except OSError:  # a model need not have one
        generation = GenerationConfig()
    stops = sorted(job.vocabulary.stop_ids)
    first = job.vocabulary.tokenizer.eos_token_id
    generation.eos_token_id = sorted(stops, key=lambda i: i != first)  # the tokenizer's own comes first
    if generation.pad_token_id is None:
        generation.pad_token_id = job.vocabulary.tokenizer.pad_token_id
    # As the base has it: save_pretrained refuses combinations that some bases come with.
    kept = {k: v for k, v in generation.to_diff_dict().items() if k != "_from_model_config" and v is not False}
    write_json(folder / "generation_config.json", kept)


def write_adapter(job: Job, folder: Path) -> None:
    """Writes the adapter in PEFT's format, naming its base and the base's revision."""
    from peft.utils import load_peft_weights
    from safetensors.torch import save_file

    weights = load_peft_weights(str(job.target.adapter), device="cpu")
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    saved = job.target.adapter_config
    named = str(saved.get("base_model_name_or_path") or "")
    if not named or (named.startswith(("/", ".", "~")) and not Path(named).is_dir()):
        named = job.target.base  # a folder of the machine that it was trained on
    saved = saved | {
        "base_model_name_or_path": named,
        "revision": saved.get("revision") or (job.revision if named == job.target.base else None),
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", saved)
    if (job.target.adapter / REFERENCE).is_file():
        shutil.copyfile(job.target.adapter / REFERENCE, folder / REFERENCE)


def probe_adapter(job: Job, folder: Path, source: Source) -> Probe:
    """Returns what plain PEFT says of a written adapter."""
    from peft import PeftModel

    dtype, remote_code = job.model_config.dtype or torch.float32, job.config.trust_remote_code
    base = load_causal_lm(job.target.base, "model", dtype, remote_code)
    return probe(PeftModel.from_pretrained(base.to(device()), str(folder)), source.live.texts, source.live)


def write_merged(job: Job, folder: Path, source: Source, dtype: str, tick: Tick) -> None:
    """Writes the merged model, shard by shard as the base is, a few rows at a time."""
    torch_dtype = getattr(torch, dtype)
    tensors, stored = source.tensors(), source.checkpoint.tensors
    shards: dict[str, list[str]] = {}
    for name, (origin, _) in tensors.items():
        shards.setdefault(stored[origin].file.name, []).append(name)
    if len(shards) == 1:
        shards = {SINGLE: next(iter(shards.values()))}
    done, total = 0, 0
    for file, names in shards.items():
        with ShardWriter(folder / file, {name: (dtype, tensors[name][1]) for name in names}) as writer:
            for name in names:
                for rows in source.blocks(name):
                    narrow = rows.to(torch_dtype)
                    if not narrow.isfinite().all():
                        raise UserError(f"{name} has numbers that {dtype} can't hold; type --dtype bfloat16")
                    writer.append(narrow)
                    total += narrow.numel() * narrow.itemsize
                done += 1
                tick("merging", done, len(tensors))
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    config = type(job.model_config).from_dict(job.model_config.to_dict())
    config.dtype = torch_dtype
    config.tie_word_embeddings = source.tied
    config.save_pretrained(folder)
    local = Path(job.target.base)
    for code in sorted(local.glob("*.py")) if local.is_dir() and job.config.trust_remote_code else []:
        shutil.copyfile(code, folder / code.name)


def check_merged(folder: Path, source: Source, dtype: str, tick: Tick) -> int:
    """Returns how many tensors of a written model are, bit for bit, the merge rounded once; raises UserError for others."""
    written = Checkpoint(str(folder))
    tensors = source.tensors()
    if set(written.tensors) != set(tensors):
        odd = sorted(set(written.tensors) ^ set(tensors))
        raise UserError(f"the written model has other tensors than the merge ({len(odd)}, for one {odd[0]})")
    for done, (name, (_, shape)) in enumerate(tensors.items(), 1):
        for rows, expected in zip(row_blocks(shape), source.blocks(name), strict=True):
            if not torch.equal(written.rows(name, rows), expected.to(getattr(torch, dtype))):
                raise UserError(
                    f"{name} was read back from the disk as other numbers than were written; is the disk sound?"
                )
        tick("reading back", done, len(tensors))
    return len(tensors)


def probe_merged(job: Job, folder: Path, source: Source) -> Probe:
    """Returns what a written model says, loaded by transformers in the dtype that its config names."""
    model = _load_written(job, folder, "auto").to(device())
    if bool(model.config.tie_word_embeddings) != source.tied:
        raise UserError("the written model ties head and embedding otherwise than the merge does")
    return probe(model, source.live.texts, source.live)


def write_4bit(job: Job, folder: Path, source: Source, tick: Tick) -> tuple[Probe, Probe]:
    """Writes the merged model in NF4, by bitsandbytes; returns what it says before it is saved, and the base in NF4."""
    whole = folder / ".merged"
    whole.mkdir()
    write_merged(job, whole, source, "bfloat16", tick)
    options: dict[str, Any] = {"quantization_config": nf4(torch.bfloat16), "device_map": {"": device()}}
    model = _load_written(job, whole, torch.bfloat16, **options)
    said = probe(model, source.live.texts, source.live)
    model.save_pretrained(folder)
    shutil.rmtree(whole)
    if not source.changes:
        return said, said
    del model
    gc.collect()  # quantised models hold themselves in a circle
    base = _load_written(job, Path(job.target.base), torch.bfloat16, **options)
    return said, probe(base, source.live.texts, source.live)


def probe_4bit(job: Job, folder: Path, source: Source) -> Probe:
    """Returns what a written 4-bit model says, loaded by transformers."""
    model = _load_written(job, folder, torch.bfloat16, device_map={"": device()})
    return probe(model, source.live.texts, source.live)


def _load_written(job: Job, folder: Path, dtype: Any, **options: Any) -> Any:
    model = load_causal_lm(str(folder), "model", dtype, job.config.trust_remote_code, **options)
    stay_unpacked(model)
    return model
