"""The export itself, in order: job, live model, merge, write, read back, prove, hand over, upload."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.files import digest, files_in, write_json
from poweropd_lite.base.progress import Counting
from poweropd_lite.evaluate.agenda import versions
from poweropd_lite.export.card import base_name, evaluation, training, write_card
from poweropd_lite.export.folders import export_4bit, export_adapter, export_merged
from poweropd_lite.export.gguf import export_gguf
from poweropd_lite.export.handover import REPORT, handed_over
from poweropd_lite.export.job import Job
from poweropd_lite.export.prepare import prepare_job
from poweropd_lite.export.proof import check_export, check_merge
from poweropd_lite.export.push import check_push, push
from poweropd_lite.export.settings import ExportConfig
from poweropd_lite.export.source import Source, read_source


@dataclass(frozen=True)
class Exported:
    """What `export` returns: the folder, export.json, and the address of an upload."""

    folder: Path
    report: dict[str, Any]
    url: str | None = None


def export(config: ExportConfig, say: Callable[[str], None] = print) -> Exported:
    """Exports a run or an adapter; raises UserError, with nothing written, where the export would be a wrong one."""
    job = prepare_job(config)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if config.push:
        check_push(job, config.push)
    base = base_name(job.target.base)
    say(f"{job.target.kind} {job.target.name} on {base}, to {config.to} ({job.kind}), into {job.out}")
    source = read_source(job, say)
    merge = (
        asdict(check_merge(source.merged, source.live, source.base, source.noise)) if config.to != "adapter" else None
    )
    with handed_over(job.out, config.overwrite) as folder:
        proof = _write(job, folder, source) | {"unrounded_merge": merge}
        report = _report(job, source, proof)
        write_card(job, folder, report)
        files = files_in(folder)
        report["sha256"] = {name: digest(file) for name, file in files.items() if file.suffix != ".md"}
        report["files"] = {name: file.stat().st_size for name, file in files.items()}  # bytes
        write_json(folder / REPORT, report)
    for note in report["notes"]:
        say(f"note: {note}")
    difference, effect, share = proof["difference"], proof["adapter_effect"], proof["effect_kept"]
    left = "" if share is None else f"; the adapter's effect is {effect['mean']:.1e} nats, {share:.1%} of it kept"
    say(
        f"{proof['verdict']}: the likeliest tokens' log-probs within {difference['mean']:.1e} nats of the live model's on average, "
        f"{difference['largest']:.1e} at most{left}"
    )
    files = files_in(job.out)
    size = sum(file.stat().st_size for file in files.values()) / 2**20
    say(f"files   {job.out} ({size:,.1f} MiB): " + "  ".join(files))
    say(f"next:   how to load it is in {job.out}/README.md")
    url = push(job, config.push, say) if config.push else None
    return Exported(job.out, report, url)


def _write(job: Job, folder: Path, source: Source) -> dict[str, Any]:
    """Writes the format, reads it back and returns its proof."""
    checked = rounded = None
    with Counting("tensor") as counting:
        if job.config.to == "gguf":
            said, checked = export_gguf(job, folder, source, counting.show)
        elif job.config.to == "adapter":
            said = export_adapter(job, folder, source)
        elif job.config.to == "merged-16bit":
            said, checked = export_merged(job, folder, source, counting.show)
        else:
            said, rounded = export_4bit(job, folder, source, counting.show)
    proof = check_export(said, source.live, source.base, job.kind, source.notes, rounded, source.noise)
    if proof["effect_kept"] is None and source.changes and not source.is_zero:
        source.notes.append(
            "the adapter moves no log-prob of the texts that were compared: that it learnt anything can't be seen in them"
        )
        proof["verdict"] = "within the format's limits, of an adapter without effect"
    return proof | {"tensors_read_back": checked}


def _report(job: Job, source: Source, proof: dict[str, Any]) -> dict[str, Any]:
    """What export.json says."""
    tokenizer, stops = job.vocabulary.tokenizer, sorted(job.vocabulary.stop_ids)
    return {
        "format": job.config.to,
        "weights": job.config.gguf_kind if job.config.to == "gguf" else job.kind,
        "source": job.target.name,
        "source_kind": job.target.kind,
        "base": base_name(job.target.base),
        "base_revision": job.revision,
        "stop_tokens": dict(zip(tokenizer.convert_ids_to_tokens(stops), stops, strict=True)),
        "adapter_is_zero": source.is_zero if source.changes else None,  # of DoRA it is not known
        "tied_embeddings": source.tied,
        "tensors": len(source.tensors) or None,
        "tensors_changed_by_adapter": len(source.changes),
        "training": training(job),
        "evaluation": evaluation(job),
        "proof": proof,
        "notes": source.notes,
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": versions("torch", "transformers", "peft", "bitsandbytes", "gguf"),
    }
