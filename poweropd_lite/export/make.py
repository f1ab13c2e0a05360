"""The export itself, in order: job, live model, merge, write, read back, prove, hand over, upload."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import poweropd_lite
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.base.progress import Counting
from poweropd_lite.engines.choose import hush_bitsandbytes, installed
from poweropd_lite.export import folders
from poweropd_lite.export.card import write_card
from poweropd_lite.export.gguf import export_gguf
from poweropd_lite.export.handover import REPORT, handed_over
from poweropd_lite.export.history import base_name, evaluation, training
from poweropd_lite.export.job import Job
from poweropd_lite.export.prepare import prepare_job
from poweropd_lite.export.proof import check_export, check_merge, gap
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

    hush_bitsandbytes()
    transformers.utils.logging.disable_progress_bar()
    check_push(job)
    say(
        f"{job.target.kind} {job.target.name} on {base_name(job.target.base)}, to {config.to} ({job.kind}), into {job.out}"
    )
    source = read_source(job, say)
    merge = asdict(check_merge(source)) if config.to != "adapter" else None
    with handed_over(job.out, config.overwrite) as folder:
        proof = _write(job, folder, source)
        report = _report(job, source, proof | {"unrounded_merge": merge})
        write_card(job, folder, report)
        report["files"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}  # bytes
        write_json(folder / REPORT, report)
    for note in report["notes"]:
        say(f"note: {note}")
    difference, effect, share = proof["difference"], proof["adapter_effect"], proof["effect_kept"]
    say(
        f"{proof['verdict']}: log-probs within {difference['mean']:.1e} nats of the live model on average, {difference['largest']:.1e} at most"
        + (f"; the adapter's effect is {effect['mean']:.1e}, {share:.1%} of it kept" if share is not None else "")
    )
    size = sum(file.stat().st_size for file in job.out.iterdir())
    say(f"files   {job.out} ({size / 2**20:,.1f} MiB): " + "  ".join(sorted(file.name for file in job.out.iterdir())))
    say(f"next:   how to load it is in {job.out}/README.md")
    url = push(job, say) if config.push else None
    return Exported(job.out, report, url)


def _write(job: Job, folder: Path, source: Source) -> dict[str, Any]:
    """Writes the format, reads it back and returns its proof."""
    with Counting("tensor") as counting:
        tick = counting.show
        if job.config.to == "gguf":
            said, checked = export_gguf(job, folder, source, tick)
            return check_export(said, source, job.kind) | {"tensors_read_back": checked}
        folders.write_common(job, folder)
        if job.config.to == "adapter":
            folders.write_adapter(job, folder)
            said, checked = folders.probe_adapter(job, folder, source), None
        elif job.config.to == "merged-16bit":
            folders.write_merged(job, folder, source, job.kind, tick)
            checked = folders.check_merged(folder, source, job.kind, tick)
            said = folders.probe_merged(job, folder, source)
        else:
            before, base = folders.write_4bit(job, folder, source, tick)
            folders.write_common(job, folder)
            said, checked = folders.probe_4bit(job, folder, source), None
            if gap(before, said).largest > 1e-4:
                raise UserError(
                    f"the 4-bit model says other things after it was saved and loaded (by {gap(before, said).largest:.3g} nats); nothing "
                    "was handed over. Type --to merged-16bit, which any loader can quantise itself"
                )
            return check_export(said, source, job.kind, base) | {"tensors_read_back": checked}
    return check_export(said, source, job.kind) | {"tensors_read_back": checked}


def _report(job: Job, source: Source, proof: dict[str, Any]) -> dict[str, Any]:
    """What export.json says."""
    import platform

    packages = ("torch", "transformers", "peft", "bitsandbytes", "gguf")
    tokenizer, stops = job.vocabulary.tokenizer, sorted(job.vocabulary.stop_ids)
    return {
        "format": job.config.to,
        "weights": job.gguf_type if job.config.to == "gguf" else job.kind,
        "source": job.target.name,
        "source_kind": job.target.kind,
        "base": base_name(job.target.base),
        "base_revision": job.revision,
        "stop_tokens": dict(zip(tokenizer.convert_ids_to_tokens(stops), stops, strict=True)),
        "adapter_is_zero": source.is_zero if job.target.adapter else None,
        "tied_embeddings": source.tied,
        "tensors": len(source.tensors()) or None,
        "tensors_changed_by_adapter": len(source.changes),
        "training": training(job),
        "evaluation": evaluation(job),
        "proof": proof,
        "notes": source.notes,
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "poweropd_lite": poweropd_lite.__version__,
            "python": platform.python_version(),
            **{name: version for name in packages if (version := installed(name))},
        },
    }
