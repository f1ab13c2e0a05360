"""A plan in numbers and in words: memory by phase, operations, time, and whether it fits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.progress import clock
from poweropd_lite.plan.cards import SIZES, Card, evaluation_seconds, evaluations, find_card, step_seconds
from poweropd_lite.plan.flops import TERA, Lengths, paper_update, step_flops
from poweropd_lite.plan.memory import CUDA_CONTEXT, FRAGMENTED, GIB, WEIGHTS, MemoryPlan
from poweropd_lite.plan.settings import PlanConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """What is planned for."""

    name: str
    cuda: bool
    card: Card | None  # its published figures, if they are known
    gib: float | None  # of memory that can be used; None: any


def report(
    config: Config,
    plan: MemoryPlan,
    machine: Machine,
    dtype: "torch.dtype",
    engine: str,
    asked: PlanConfig,
    changes: dict[str, tuple[Any, Any]] | None,
) -> dict[str, Any]:
    """Returns everything that a plan says, as JSON; `changes` make it fit, None says that nothing here does."""
    new = min(asked.completion_tokens or config.max_new_tokens, config.max_new_tokens)  # no rollout is longer
    lengths = Lengths(min(asked.prompt_tokens, config.max_prompt_tokens), new)
    paper = paper_update(plan.teacher, plan.student.shape, config.batch_size, lengths)
    out = {
        "student": config.student,
        "teacher": config.teacher,
        "teacher_bits": config.teacher_bits,
        "trained": plan.student.trained,
        "trains": "every weight" if config.full_finetune else f"LoRA, rank {config.lora_rank}",
        "dtype": str(dtype).removeprefix("torch."),
        "engine": engine,
        "machine": machine.name,
        "usable_bytes": None if machine.gib is None else round(machine.gib * GIB),
        "phases": plan.phases,
        "peak_phase": plan.peak_phase,
        "peak_bytes": plan.peak,
        "runtime_bytes": plan.runtime,
        "needed_bytes": plan.needed,
        "fits": None if machine.gib is None else changes == {},
        "changes": None if changes is None else {name: list(pair) for name, pair in changes.items()},
        "lengths": {"prompt": lengths.prompt, "completion": lengths.completion},
        "tflops": {k: v / TERA for k, v in step_flops(config, plan.student, plan.teacher, lengths).items()},
        "paper_tflops": {
            "teacher": paper.teacher,
            "student": paper.student,
            "update": paper.sampled,
            "full_vocabulary": paper.full_vocabulary,
            "saved": paper.saved,
        },
        "seconds": None,
    }
    if machine.card is not None:
        shares = asked.compute_share, asked.bandwidth_share
        step = step_seconds(config, plan, machine.card, lengths, *shares)
        scoring = evaluation_seconds(config, plan, lengths, machine.card, asked.bandwidth_share)
        times = evaluations(config)
        out["seconds"] = {
            "step": step,
            "evaluation": scoring,
            "evaluations": times,
            "run": config.steps * sum(step.values()) + times * scoring,
            "card": {"tflops": machine.card.tflops, "bandwidth": machine.card.bandwidth},
            "assumed": {"compute_share": shares[0], "bandwidth_share": shares[1]},
        }
    return out


def words(r: dict[str, Any], steps: int) -> str:
    """Returns a report as it is shown on a screen."""
    lines = [
        f"{r['student']} ({r['trains']}: {r['trained']:,} trained, {r['dtype']}) <- {r['teacher']} ({r['teacher_bits']}-bit); "
        f"rollouts by {'vLLM' if r['engine'] == 'vllm' else 'the built-in loop'}",
        "",
        *_memory_table(r["phases"]),
        "",
        f"peak    {_gib(r['peak_bytes'])} GiB of tensors ({r['peak_phase']}); it needs {_gib(r['needed_bytes'])} GiB{_beside(r)}",
        f"fits    {_fit(r)}",
        "TFLOPs  of a step ({prompt} + {completion:,} tokens a rollout): ".format(**r["lengths"])
        + ", ".join(f"{phase} {value:,.4g}" for phase, value in r["tflops"].items()),
        "        by the paper's convention (appendix B): teacher {teacher:,.4g}, student {student:,.4g}; update {update:,.4g} on sampled "
        "tokens, {full_vocabulary:,.4g} over the full vocabulary".format(**r["paper_tflops"])
        + f" ({r['paper_tflops']['saved']:.1%} saved)",
    ]
    if r["seconds"]:
        s = r["seconds"]
        parts = ", ".join(f"{phase} {value:.1f}" for phase, value in s["step"].items() if value >= 0.05)
        scoring = f", {clock(s['evaluation'])} an evaluation" if s["evaluations"] else ""
        lines += [
            f"time    about {sum(s['step'].values()):.1f} s a step ({parts}){scoring}; {clock(s['run'])} for {steps:,} steps and "
            f"{s['evaluations']} evaluations on {r['machine']}",
            f"        an estimate, not measured: {s['assumed']['compute_share']:.0%} of {s['card']['tflops']:g} TFLOP/s and "
            f"{s['assumed']['bandwidth_share']:.0%} of {s['card']['bandwidth']:,g} GB/s",
        ]
    return "\n".join(lines)


def _memory_table(phases: dict[str, dict[str, int]]) -> list[str]:
    unit, name = (2**30, "GiB") if max(sum(items.values()) for items in phases.values()) > 2**30 else (2**20, "MiB")
    held = [w for w in (*WEIGHTS, "engine") if any(w in items for items in phases.values())]
    rows = [[name, *held, "besides", "", "total"]]
    for phase, items in phases.items():
        rest = {item: size for item, size in items.items() if item not in held}
        named = ", ".join(f"{item} {size / unit:.2f}" for item, size in rest.items())
        cells = [f"{items[w] / unit:.2f}" if w in items else "-" for w in held]
        rows.append([phase, *cells, f"{sum(rest.values()) / unit:.2f}", named, f"{sum(items.values()) / unit:.2f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = {0, len(rows[0]) - 2}
    return [
        "  ".join(c.ljust(w) if i in texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _beside(r: dict[str, Any]) -> str:
    if r["runtime_bytes"] == CUDA_CONTEXT:
        return f", CUDA's own {_gib(CUDA_CONTEXT)} and {FRAGMENTED:.0%} of what is no weight counted"
    return f", this process's own {_gib(r['runtime_bytes'])} counted" if r["runtime_bytes"] else ""


def _fit(r: dict[str, Any]) -> str:
    need = r["needed_bytes"] / GIB
    if r["usable_bytes"] is None:
        sizes = [f"{size} GB" for size in SIZES if find_card(str(size))[2] >= need]
        return f"a card of {', '.join(sizes)}" if sizes else f"no card of {SIZES[-1]} GB"
    usable = r["usable_bytes"] / GIB
    if r["fits"]:
        return f"{r['machine']} ({usable:.1f} GiB can be used), with {usable - need:.1f} GiB to spare"
    return f"not on {r['machine']}: {usable:.1f} GiB can be used, {need - usable:.1f} GiB too few"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
