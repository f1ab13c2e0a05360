"""The Markdown of what has been measured: every figure of the JSON files that a person would compare."""

import json
from pathlib import Path

from parts import PARTS

PHASES = ("rollout", "teacher", "student", "optimizer")
HEAD = (
    "part | s a step | rollout | teacher | student | optimizer | peak GiB | planned | at rest | tokens/s | gradient | gap, nats"
    " | teacher, % of matmul | student, % | rollout, % of copy"
)
SHARES = (("teacher_tflops", "tflops"), ("student_tflops", "tflops"), ("rollout_gb_per_second", "gb_per_second"))


def table(out: Path) -> str:
    """Returns the tables of a folder of results."""
    paths = {part: out / f"{part.name}.json" for part in PARTS}
    found = {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}
    named = {part.name: figures for part, figures in found.items() if "failed" not in figures}
    lines = [f"{part.name}: {figures['failed']}" for part, figures in found.items() if "failed" in figures]
    card = named.get("card")
    if card:
        said = f"{card['tflops']:.0f} TFLOP/s, {card['gb_per_second']:.0f} GB/s, commit {card.get('commit')}"
        lines.append(f"{card['device']}, torch {card['torch']}: {said}")
    if correct := named.get("correct"):
        lines += _rows("error |", [f"{name} | {value:.3g}" for name, value in correct["errors"].items()])
        lines += [f"WRONG: {fault}" for fault in correct["faults"]]
    steps = [_step(part.name, named[part.name], card) for part in PARTS if part.step and part.name in named]
    if steps:
        lines += _rows(HEAD, steps)
    for name, measured in named.items():
        if "rows" in measured:  # head, decode, evaluate, commands
            columns = list(measured["rows"][0])
            lines += _rows(f"{name}: " + " | ".join(columns), [_cells(row.values()) for row in measured["rows"]])
        for what, profile in measured.get("profiles", {}).items():
            head = f"{what}: {profile['calls']:,} kernels, {profile['us'] / 1000:.1f} ms | calls | us | %"
            top = [
                f"`{k['name'][:70].replace('|', '/')}` | {k['calls']} | {k['us']:.0f} | {100 * k['us'] / profile['us']:.1f}"
                for k in profile["top"][:12]
            ]
            lines += _rows(head, top)
    return "\n".join(lines)


def _rows(head: str, rows: list[str]) -> list[str]:
    return ["", f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows)]


def _cells(values) -> str:
    return " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def _step(name: str, f: dict, card: dict | None) -> str:
    shares = [f"{100 * f[key] / card[unit]:.0f}" if card else "" for key, unit in SHARES]
    planned = f"{max(f['planned_gib_by_phase'].values()):.2f}" if "planned_gib_by_phase" in f else ""
    maybe = [f.get(key) for key in ("grad_norm", "gap")]
    return " | ".join(
        [
            name,
            f"{f['seconds']:.2f}",
            *(f"{f['seconds_by_phase'][phase]:.2f}" for phase in PHASES),
            f"{f['peak_gib']:.2f} | {planned} | {f['resident_gib']:.2f} | {f['tokens_per_second']:.0f}",
            *("" if value is None else f"{value:.2g}" for value in maybe),
            *shares,
        ]
    )
