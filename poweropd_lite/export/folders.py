"""The formats that transformers and PEFT load: adapter, merged in 16 bits, in NF4. Each is written, then read back.

An export_* fills a folder, loads it as a user would, and returns what the loaded model says.
"""

import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.export.check import Tick, check_equal, check_names
from poweropd_lite.export.job import Job
from poweropd_lite.export.proof import gap
from poweropd_lite.export.shards import INDEX, SINGLE, Checkpoint, new_shard, row_blocks
from poweropd_lite.export.source import Source, device
from poweropd_lite.export.whole import adapter_of_whole, check_whole, load_whole, write_whole
from poweropd_lite.models.experts import fused_experts
from poweropd_lite.models.loading import check_blocks, load_causal_lm, nf4, save_tokenizer, stay_unpacked
from poweropd_lite.models.probe import REFERENCE, Probe
from poweropd_lite.models.saved import check_fit, saved_weights


def write_common(job: Job, folder: Path) -> None:
    """Writes the tokenizer with its chat template, and a generation config that stops where training stopped."""
    from transformers import GenerationConfig

    tokenizer = job.vocabulary.tokenizer
    for ours in ("local_files_only", "is_local"):  # how it was loaded here, which transformers would write down
        tokenizer.init_kwargs.pop(ours, None)
    save_tokenizer(tokenizer, folder)
    try:
        generation = GenerationConfig.from_pretrained(job.target.base)
    except OSError:  # a model need not have one
        generation = GenerationConfig()
    own = tokenizer.eos_token_id  # which comes first
    generation.eos_token_id = sorted(job.vocabulary.stop_ids, key=lambda i: (i != own, i))
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    # As the base has it: save_pretrained refuses combinations that some bases come with.
    kept = {k: v for k, v in generation.to_diff_dict().items() if k != "_from_model_config" and v is not False}
    write_json(folder / "generation_config.json", kept)


def export_adapter(job: Job, folder: Path, source: Source) -> Probe:
    """Writes the adapter in PEFT's format, naming its base and the base's revision; asked through plain PEFT, of a whole on that."""
    from peft import PeftModel
    from safetensors.torch import save_file

    write_common(job, folder)
    target, adapter = job.target, job.target.adapter
    assert adapter is not None  # prepare.py refuses a whole model
    weights, settings = saved_weights(adapter, target.adapter_config), target.adapter_config
    if job.whole:
        base: Any = load_whole(job)
        weights, settings = adapter_of_whole(base, weights, settings)
    else:
        base = load_causal_lm(target.base, "model", job.stored_dtype, job.config.trust_remote_code)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    named = str(target.adapter_config.get("base_model_name_or_path") or "")
    if not named or (named.startswith(("/", ".", "~")) and not Path(named).is_dir()):
        named = target.base  # a folder of the machine that it was trained on
    settings = settings | {
        "base_model_name_or_path": named,
        "revision": target.adapter_config.get("revision") or (job.revision if named == target.base else None),
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", settings)
    if (adapter / REFERENCE).is_file():
        shutil.copyfile(adapter / REFERENCE, folder / REFERENCE)
    model: Any = PeftModel.from_pretrained(base.to(device()), str(folder))
    check_fit(model, folder, weights, target.base, "--base")
    # PEFT rounds modules trained whole to the base's dtype; what is on the disk is not rounded.
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data = weights[name.replace(".modules_to_save.default", "")].to(parameter.device)
    return source.ask(model)


def export_merged(job: Job, folder: Path, source: Source, tick: Tick) -> tuple[Probe, int]:
    """Writes the merged model in job.kind; asked in the dtype that its config names. Returns the tensors read back too."""
    write_common(job, folder)
    if job.whole:
        write_whole(job, folder, source, tick)
        checked = check_whole(job, folder, source, tick)
    else:
        write_merged(job, folder, source, job.kind, tick)
        checked = check_merged(folder, source, job.kind, tick)
    model = _load_written(job, folder, "auto").to(device())
    if bool(model.config.tie_word_embeddings) != source.tied:
        raise UserError("the written model ties head and embedding otherwise than the merge does")
    return source.ask(model), checked


def write_merged(job: Job, folder: Path, source: Source, dtype: str, tick: Tick) -> None:
    """Writes the merged model, shard by shard as the base is, a few rows at a time."""
    torch_dtype, tensors = getattr(torch, dtype), source.tensors
    shards: dict[str, list[str]] = {}
    for name, (origin, _) in tensors.items():
        shards.setdefault(source.checkpoint.tensors[origin].file.name, []).append(name)
    if len(shards) == 1:
        shards = {SINGLE: next(iter(shards.values()))}
    done, total = 0, 0
    for file, names in shards.items():
        with new_shard(folder / file, torch_dtype, {name: tensors[name][1] for name in names}) as append:
            for name in names:
                for rows in source.blocks(name):
                    narrow = rows.to(torch_dtype)
                    if not narrow.isfinite().all():
                        raise UserError(f"{name} has numbers that {dtype} can't hold; type --dtype bfloat16")
                    total += append(narrow)
                done += 1
                tick("merging", done, len(tensors))
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    config = type(job.model_config).from_dict(job.model_config.to_dict())
    config.dtype, config.tie_word_embeddings = torch_dtype, source.tied
    config.save_pretrained(folder)
    local = Path(job.target.base)
    for code in sorted(local.glob("*.py")) if local.is_dir() and job.config.trust_remote_code else []:
        shutil.copyfile(code, folder / code.name)


def check_merged(folder: Path, source: Source, dtype: str, tick: Tick) -> int:
    """Returns how many tensors of a written model are the merge rounded once, bit for bit; or raises UserError."""
    written, tensors = Checkpoint(str(folder)), source.tensors
    check_names(set(written.tensors), set(tensors))
    for done, (name, (_, shape)) in enumerate(tensors.items(), 1):
        for rows, expected in zip(row_blocks(shape), source.blocks(name), strict=True):
            check_equal(name, torch.equal(written.rows(name, rows), expected.to(getattr(torch, dtype))))
        tick("reading back", done, len(tensors))
    return len(tensors)


def export_4bit(job: Job, folder: Path, source: Source, tick: Tick) -> tuple[Probe, Probe]:
    """Writes the merged model in NF4, by bitsandbytes; with it comes what the base says in NF4.

    Raises UserError where the model says other things after it was saved and loaded.
    """
    whole = folder / ".merged"
    whole.mkdir()
    write_merged(job, whole, source, "bfloat16", tick)
    place = {"device_map": {"": device()}}
    quantised: dict[str, Any] = {"quantization_config": nf4(torch.bfloat16), **place}
    model = _load_written(job, whole, torch.bfloat16, **quantised)
    before = rounded = source.ask(model)
    model.save_pretrained(folder)
    shutil.rmtree(whole)
    del model
    gc.collect()  # quantised models hold themselves in a circle
    if source.changes:
        rounded = source.ask(_load_written(job, Path(job.target.base), torch.bfloat16, **quantised))
    write_common(job, folder)
    said = source.ask(_load_written(job, folder, torch.bfloat16, **place))
    if (moved := gap(before, said)).largest > 1e-4:
        raise UserError(
            f"the 4-bit model says other things after it was saved and loaded (by {moved.largest:.3g} nats); nothing "
            "was handed over. Type --to merged-16bit, which any loader can quantise itself"
        )
    return said, rounded


def _load_written(job: Job, folder: Path, dtype: Any, **options: Any) -> Any:
    model = load_causal_lm(str(folder), "model", dtype, job.config.trust_remote_code, **options)
    if "quantization_config" in options and (fused := fused_experts(model)):
        left = f"{len(fused)} fused parameters of experts, which 4 bits would leave as they are"
        raise UserError(f"{job.target.name} has {left}; type --to merged-16bit")
    check_blocks(model, job.target.name)
    stay_unpacked(model)
    return model
