"""The export itself, in order: plan, live model, merge, write, read back, prove, hand over, upload."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.export.handover import REPORT, handed_over
from poweropd_lite.export.plan import Plan, make_plan
from poweropd_lite.export.settings import ExportConfig

if TYPE_CHECKING:
    from poweropd_lite.export.source import Source


@dataclass(frozen=True)
class Exported:
    """What `export` returns: the folder, export.json, and the address of an upload."""

    folder: Path
    report: dict[str, Any]
    url: str | None = None


def export(config: ExportConfig, say: Callable[[str], None] = print) -> Exported:
    """Exports a run or an adapter; raises UserError, with nothing written, where the export would be a wrong one."""
    plan = make_plan(config)
    import transformers

    from poweropd_lite.engines.choose import hush_bitsandbytes
    from poweropd_lite.export.card import write_card
    from poweropd_lite.export.history import base_name
    from poweropd_lite.export.proof import check_merge
    from poweropd_lite.export.push import check_push, push
    from poweropd_lite.export.source import read_source

    hush_bitsandbytes()
    transformers.utils.logging.disable_progress_bar()
    check_push(plan)
    say(
        f"{plan.target.kind} {plan.target.name} on {base_name(plan.target.base)}, to {config.to} ({plan.kind}), into {plan.out}"
    )
    source = read_source(plan, say)
    merge = asdict(check_merge(source)) if config.to != "adapter" else None
    with handed_over(plan.out, config.overwrite) as folder:
        proof = _write(plan, folder, source)
        report = _report(plan, source, proof | {"unrounded_merge": merge})
        write_card(plan, folder, report)
        report["files"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}  # bytes
        write_json(folder / REPORT, report)
    for note in report["notes"]:
        say(f"note: {note}")
    difference, effect, share = proof["difference"], proof["adapter_effect"], proof["effect_kept"]
    say(
        f"{proof['verdict']}: log-probs within {difference['mean']:.1e} nats of the live model on average, {difference['largest']:.1e} at most"
        + (f"; the adapter's effect is {effect['mean']:.1e}, {share:.1%} of it kept" if share is not None else "")
    )
    size = sum(file.stat().st_size for file in plan.out.iterdir())
    say(f"files   {plan.out} ({size / 2**20:,.1f} MiB): " + "  ".join(sorted(file.name for file in plan.out.iterdir())))
    say(f"next:   how to load it is in {plan.out}/README.md")
    url = push(plan, say) if config.push else None
    return Exported(plan.out, report, url)


def _write(plan: Plan, folder: Path, source: "Source") -> dict[str, Any]:
    """Writes the format, reads it back and returns its proof."""
    from poweropd_lite.base.progress import Counting
    from poweropd_lite.export import folders
    from poweropd_lite.export.proof import check_export, gap

    with Counting("tensor") as counting:
        tick = counting.show
        if plan.config.to == "gguf":
            from poweropd_lite.export.gguf import export_gguf

            said, checked = export_gguf(plan, folder, source, tick)
            return check_export(said, source, plan.kind) | {"tensors_read_back": checked}
        folders.write_common(plan, folder)
        if plan.config.to == "adapter":
            folders.write_adapter(plan, folder)
            said, checked = folders.probe_adapter(plan, folder, source), None
        elif plan.config.to == "merged-16bit":
            folders.write_merged(plan, folder, source, plan.kind, tick)
            checked = folders.check_merged(folder, source, plan.kind, tick)
            said = folders.probe_merged(plan, folder, source)
        else:
            before, base = folders.write_4bit(plan, folder, source, tick)
            folders.write_common(plan, folder)
            said, checked = folders.probe_4bit(plan, folder, source), None
            if gap(before, said).largest > 1e-4:
                raise UserError(
                    f"the 4-bit model says other things after it was saved and loaded (by {gap(before, said).largest:.3g} nats); nothing "
                    "was handed over. Type --to merged-16bit, which any loader can quantise itself"
                )
            return check_export(said, source, plan.kind, base) | {"tensors_read_back": checked}
    return check_export(said, source, plan.kind) | {"tensors_read_back": checked}


def _report(plan: Plan, source: "Source", proof: dict[str, Any]) -> dict[str, Any]:
    """What export.json says."""
    import platform

    import poweropd_lite
    from poweropd_lite.engines.choose import installed
    from poweropd_lite.export.history import base_name, evaluation, training

    packages = ("torch", "transformers", "peft", "bitsandbytes", "gguf")
    tokenizer, stops = plan.vocabulary.tokenizer, sorted(plan.vocabulary.stop_ids)
    return {
        "format": plan.config.to,
        "weights": plan.gguf_type if plan.config.to == "gguf" else plan.kind,
        "source": plan.target.name,
        "source_kind": plan.target.kind,
        "base": base_name(plan.target.base),
        "base_revision": plan.revision,
        "stop_tokens": dict(zip(tokenizer.convert_ids_to_tokens(stops), stops, strict=True)),
        "adapter_is_zero": source.is_zero if plan.target.adapter else None,
        "tied_embeddings": source.tied,
        "tensors": len(source.tensors()) or None,
        "tensors_changed_by_adapter": len(source.changes),
        "training": training(plan),
        "evaluation": evaluation(plan),
        "proof": proof,
        "notes": source.notes,
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "poweropd_lite": poweropd_lite.__version__,
            "python": platform.python_version(),
            **{name: version for name in packages if (version := installed(name))},
        },
    }
