"""A plan in numbers and in words: memory by phase, operations, time, whether it fits, and what would make it."""

from dataclasses import asdict
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding
from poweropd_lite.base.progress import clock
from poweropd_lite.base.tables import aligned
from poweropd_lite.base.teachers import called, how_kept
from poweropd_lite.cli import as_flags
from poweropd_lite.plan.auto import words as said_sizes
from poweropd_lite.plan.cards import (
    BUS,
    SIZES,
    Machine,
    evaluation_seconds,
    evaluations,
    find_card,
    fused_decoder,
    itemsize,
    products,
    step_seconds,
)
from poweropd_lite.plan.flops import TERA, Lengths, paper_update, step_flops
from poweropd_lite.plan.memory import CUDA_CONTEXT, FRAGMENTED, GIB, WEIGHTS, MemoryPlan
from poweropd_lite.plan.parallel import head_words, sum_words, summing
from poweropd_lite.plan.scoring import plan_scoring
from poweropd_lite.plan.settings import PlanConfig
from poweropd_lite.plan.warn import warnings

Changes = dict[str, tuple[Any, Any]] | None  # by setting: its value before, and after


def report(
    config: Config, plan: MemoryPlan, machine: Machine, dtype: str, engine: str, asked: PlanConfig, changes: Changes,
    batch: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns everything that a plan says, as JSON; `changes` make it fit, None says that nothing here does.

    Of several cards `config` is the part of one, of a step of `batch` prompts.
    """
    new = min(asked.completion_tokens or config.max_new_tokens, config.max_new_tokens)  # no rollout is longer
    lengths = Lengths(min(asked.prompt_tokens, config.max_prompt_tokens), new)
    out: dict[str, Any] = {
        "student": called(config, "student"),
        "teacher": called(config, "teacher"),
        "teacher_bits": None if config.served else config.teacher_bits,
        "teacher_kept": how_kept(config),
        "trained": plan.student.trained,
        "trains": "every weight"
        if config.full_finetune
        else f"LoRA, rank {config.lora_rank}" + (f", from {config.adapter}" if config.adapter else ""),
        "dtype": dtype,
        "engine": engine,
        "machine": machine.name,
        "usable_bytes": None if machine.gib is None else round(machine.gib * GIB),
        "offload": _offload(plan),
        "phases": plan.phases,
        "peak_phase": plan.peak_phase,
        "peak_bytes": plan.peak,
        "runtime_bytes": plan.runtime,
        "needed_bytes": plan.needed,
        "sizes": {**config.sizes, "said": said_sizes(config)},
        "fits": None if machine.gib is None else changes == {},
        "then": None,  # with these changes: what it needs, and takes
        "changes": changes and {name: list(pair) for name, pair in changes.items()},
        "lengths": {"prompt": lengths.prompt, "completion": lengths.completion},
        "tflops": {k: v / TERA for k, v in step_flops(config, plan.student, plan.teacher, lengths).items()},
        "paper_tflops": paper_update(plan.teacher, plan.student.shape, config.batch_size, lengths),
        "held_out_answers": (config.eval_samples + 1) * (config.hold_out > 0),
        "gpus": None,
        "seconds": None,
    }
    if asked.gpus > 1:
        out["gpus"] = summing(config, batch, asked.gpus, plan.student.trained, machine.card, asked.bandwidth_share)
    if (card := machine.card) is not None:
        step = step_seconds(config, plan, card, lengths, asked.compute_share, asked.bandwidth_share)
        step |= {"all-reduce": out["gpus"]["seconds"]} if out["gpus"] else {}
        scoring, times = evaluation_seconds(config, plan, lengths, card, asked.bandwidth_share), evaluations(config)
        shares, student = (asked.compute_share, asked.bandwidth_share), plan.student
        all_seven = plan_scoring(
            student.shape, student.adapter, config.student_bits, card, *shares, fused_decoder(config, card)
        )
        out["seconds"] = {
            "step": step,
            "evaluation": scoring,
            "evaluations": times,
            "run": config.steps * sum(step.values()) + times * scoring,
            "benchmarks": asdict(all_seven),
            "card": {"tflops": products(card, itemsize(config)), "bandwidth": card.bandwidth},
            "assumed": {"compute_share": asked.compute_share, "bandwidth_share": asked.bandwidth_share},
        }
    out["warnings"] = [finding.as_json() for finding in warnings(config, machine, out["seconds"])]
    return out


def _offload(plan: MemoryPlan) -> dict[str, Any] | None:
    """What an offloaded teacher takes of the host's memory and of the bus, once a step."""
    if not plan.host:
        return None
    return {"host_bytes": plan.host, "bus_bytes": plan.host, "bus_rate": BUS, "seconds": plan.host / BUS}


def words(r: dict[str, Any], steps: int) -> str:
    """Returns a report as it is shown on a screen."""
    lines = [
        "{student} ({trains}: {trained:,} trained, {dtype}) <- {teacher} ({teacher_kept}); rollouts by ".format(**r)
        + ("vLLM" if r["engine"] == "vllm" else "the built-in loop"),
        *([head_words(r["gpus"])] if r["gpus"] else []),
        "",
        _memory_table(r["phases"]),
        "",
        f"peak    {_gib(r['peak_bytes'])} GiB of tensors ({r['peak_phase']}); "
        f"it needs {_gib(r['needed_bytes'])} GiB{_beside(r)}",
        f"fits    {_fit(r)}",
        f"update  {r['sizes']['said']}",
        "TFLOPs  of a step ({prompt} + {completion:,} tokens a rollout): ".format(**r["lengths"])
        + ", ".join(f"{phase} {value:,.4g}" for phase, value in r["tflops"].items()),
        "        by the paper's convention (appendix B): teacher {teacher:,.4g}, student {student:,.4g}; update "
        "{update:,.4g} on sampled tokens, {full_vocabulary:,.4g} over the full vocabulary ({saved:.1%} saved)".format(
            **r["paper_tflops"]
        ),
    ]
    if o := r["offload"]:
        lines.append(
            f"bus     {_gib(o['host_bytes'])} GiB of teacher in the host's memory, brought to the card once a step: "
            f"{o['seconds']:.1f} s at {o['bus_rate'] / 1e9:g} GB/s (PCIe 3.0 x16; assumed, not measured)"
        )
    if r["gpus"]:
        lines.append(sum_words(r["gpus"]))
    if s := r["seconds"]:
        parts = ", ".join(f"{phase} {value:.1f}" for phase, value in s["step"].items() if value >= 0.05)
        scoring = f", {clock(s['evaluation'])} an evaluation" if s["evaluations"] else ""
        lines += [
            f"time    about {sum(s['step'].values()):.1f} s a step ({parts}){scoring}; {clock(s['run'])} for "
            f"{steps:,} steps and {s['evaluations']} evaluations on {r['machine']}",
            "        {} for evaluate --benchmarks all --n 8 ({answers:,} answers, {lines} at once, of {usual:,} tokens on average "
            "as the paper's; {} if all have {longest:,})".format(
                *(clock(s["benchmarks"][name]) for name in ("seconds", "longest_seconds")), **s["benchmarks"]
            ),
            "        an estimate, not measured: {compute_share:.0%} of {tflops:g} TFLOP/s and {bandwidth_share:.0%} of "
            "{bandwidth:,g} GB/s".format(**s["assumed"], **s["card"]),
        ]
        if r["teacher_bits"] is None:
            lines.append("        without the teacher's scoring, which is its server's")
        if r["held_out_answers"] and s["evaluations"]:
            lines.append(
                f"        each held-out prompt is taken to have an answer, and answered {r['held_out_answers']} times"
            )
    if r["changes"]:
        flags = as_flags({name: after for name, (_, after) in r["changes"].items()})
        lines.append(f"change  {flags}   (--output FILE makes a config of it)")
        then = r["then"]
        took = f"; about {sum(then['step'].values()):.1f} s a step, {clock(then['run'])} in all" if then["step"] else ""
        lines.append(f"        it needs {_gib(then['needed_bytes'])} GiB then{took}")
    elif r["changes"] is None:
        lines.append("change  no setting here makes it fit; take a smaller student or teacher, or a larger card")
    for warning in r["warnings"]:
        lines += Finding(**warning).shown()
    return "\n".join(lines)


def _memory_table(phases: dict[str, dict[str, int]]) -> str:
    unit, name = (2**30, "GiB") if max(sum(items.values()) for items in phases.values()) > 2**30 else (2**20, "MiB")
    held = [w for w in (*WEIGHTS, "engine") if any(w in items for items in phases.values())]
    rests = [{item: size for item, size in items.items() if item not in held} for items in phases.values()]
    named = [", ".join(f"{item} {size / unit:.2f}" for item, size in rest.items()) for rest in rests]
    rows = [[name, *held, "besides", "total", ""]]
    for (phase, items), rest, text in zip(phases.items(), rests, named, strict=True):
        cells = [f"{items[w] / unit:.2f}" if w in items else "-" for w in held]
        besides, total = (f"{sum(part.values()) / unit:.2f}" for part in (rest, items))
        rows.append([phase, *cells, besides, total, text.ljust(max(map(len, named)))])
    return aligned(rows)


def _beside(r: dict[str, Any]) -> str:
    if r["runtime_bytes"] == CUDA_CONTEXT:
        return f", CUDA's own {_gib(CUDA_CONTEXT)} and {FRAGMENTED:.0%} of what is no weight counted"
    return f", this process's own {_gib(r['runtime_bytes'])} counted" if r["runtime_bytes"] else ""


def _fit(r: dict[str, Any]) -> str:
    need = r["needed_bytes"] / GIB
    if r["usable_bytes"] is None:
        sizes = [f"{size} GB" for size in SIZES if find_card(str(size)).gib >= need]
        return f"a card of {', '.join(sizes)}" if sizes else f"no card of {SIZES[-1]} GB"
    usable = r["usable_bytes"] / GIB
    if r["fits"]:
        return f"{r['machine']} ({usable:.1f} GiB can be used), with {usable - need:.1f} GiB to spare"
    return f"not on {r['machine']}: {usable:.1f} GiB can be used, {need - usable:.1f} GiB too few"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
