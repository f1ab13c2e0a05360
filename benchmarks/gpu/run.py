"""Measures this project on a card: `python benchmarks/gpu/run.py --output gpu_results`.

Correctness first, then whole steps of Qwen3's true shapes with random weights. It runs from a checkout on Python 3.11
or 3.12 with torch 2.11 or newer, transformers, peft and pydantic, without the hub; bitsandbytes (else the teacher stays
in 16 bits) and vLLM are used where they are installed. Parts run one after the other, each in a process of its own that
is stopped after four minutes; each writes its JSON (and what it printed, as a log) as it ends, so what was measured
before a stop stays. `--part NAME` runs one, `--table` only prints the table, `--tiny` runs everything in small shapes
on whatever is here (the tests do).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 240

# part: student, teacher, batch, every weight?, method, engine
STEPS = {
    "lora-0.6b-4b-b32": ("0.6b", "4b", 32, False, "power", "loop"),
    "lora-0.6b-4b-b8": ("0.6b", "4b", 8, False, "power", "loop"),
    "lora-1.7b-8b-b32": ("1.7b", "8b", 32, False, "power", "loop"),
    "lora-1.7b-8b-b8": ("1.7b", "8b", 8, False, "power", "loop"),
    "full-0.6b-4b-b8": ("0.6b", "4b", 8, True, "power", "loop"),
    "full-0.6b-4b-b32": ("0.6b", "4b", 32, True, "power", "loop"),
    "full-1.7b-8b-b8": ("1.7b", "8b", 8, True, "power", "loop"),
    "full_kl-0.6b-4b-b8": ("0.6b", "4b", 8, False, "full_kl", "loop"),
    "plain-0.6b-4b-b8": ("0.6b", "4b", 8, False, "plain", "loop"),
    "eager-0.6b-4b-b8": ("0.6b", "4b", 8, False, "power", "eager"),
    "vllm-0.6b-4b-b32": ("0.6b", "4b", 32, False, "power", "vllm"),
}
PARTS = ["card", "correct", *STEPS]


def run_part(part: str, tiny: bool) -> dict:
    """Returns the figures of one part."""
    if part == "card":
        import card

        return card.measure(tiny)
    if part == "correct":
        import correct

        facts = correct.measure(tiny)
        return {"errors": facts, "faults": correct.faults(facts)}
    import steps

    student, teacher, batch, full, method, engine = STEPS[part]
    if tiny:
        student, teacher, batch = "tiny-student", "tiny-teacher", min(batch, 4)
    new, repeats = (16, 1) if tiny else (1024, 2)
    return steps.measure(
        student, teacher, batch, new, full=full, method=method, engine=engine, repeats=repeats, tiny=tiny
    )


def table(out: Path) -> str:
    """Returns the Markdown of what has been measured."""
    found = {p: json.loads((out / f"{p}.json").read_text()) for p in PARTS if (out / f"{p}.json").exists()}
    lines = []
    card = found.pop("card", None)
    if card:
        lines += [
            f"{card['device']}, torch {card['torch']}: {card['tflops']:.0f} TFLOP/s, {card['gb_per_second']:.0f} GB/s",
            "",
        ]
    correct = found.pop("correct", None)
    if correct:
        lines += ["| error | |", "|---|---|", *(f"| {k} | {v:.3g} |" for k, v in correct["errors"].items()), ""]
        lines += [f"WRONG: {fault}" for fault in correct["faults"]]
    head = "part | s a step | rollout | teacher | student | optimizer | peak GiB | at rest | tokens/s"
    head += " | teacher, % of matmul | student, % | rollout, % of copy"
    lines += [f"| {head} |", "|" + "---|" * 12]
    for part, f in found.items():
        if "failed" in f:
            lines.append(f"| {part} | {f['failed']} |" + " |" * 10)
            continue
        s = f["seconds_by_phase"]
        phases = " | ".join(f"{s[p]:.2f}" for p in ("rollout", "teacher", "student", "optimizer"))
        share = " | ".join(
            f"{100 * f[key] / card[unit]:.0f}" if card else ""
            for key, unit in (
                ("teacher_tflops", "tflops"),
                ("student_tflops", "tflops"),
                ("rollout_gb_per_second", "gb_per_second"),
            )
        )
        lines.append(
            f"| {part} | {f['seconds']:.2f} | {phases} | {f['peak_gib']:.1f} | {f['resident_gib']:.1f} | "
            f"{f['tokens_per_second']:.0f} | {share} |"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line; returns 1 if something is wrong on this card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this part (again: and this one)")
    parser.add_argument("--tiny", action="store_true", help="small shapes: does it run here?")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.here:
        (part,) = args.part
        (args.output / f"{part}.json").write_text(json.dumps(run_part(part, args.tiny), indent=1))
        return 0
    for part in [] if args.table else args.part or PARTS:
        if part.startswith("vllm") and importlib.util.find_spec("vllm") is None:
            print(f"{part}: left out, vLLM is not installed", flush=True)
            continue
        command = [sys.executable, __file__, "--here", "--part", part, "--output", str(args.output)]
        (args.output / f"{part}.json").unlink(missing_ok=True)
        try:
            done = subprocess.run(
                command + ["--tiny"] * args.tiny, capture_output=True, text=True, timeout=LIMIT_SECONDS
            )
            (args.output / f"{part}.log").write_text(done.stdout + done.stderr)
            fault = ""
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "Error" in line]
                fault = lines[-1] if lines else f"ended with code {done.returncode}"
        except subprocess.TimeoutExpired:
            fault = f"stopped after {LIMIT_SECONDS} s"
        if fault:
            (args.output / f"{part}.json").write_text(json.dumps({"failed": fault[:300]}))
            print(f"{part}: {fault} (see {part}.log)", flush=True)
            if part in ("card", "correct"):
                return 1
        else:
            print(f"{part}: done", flush=True)
        if part == "correct" and json.loads((args.output / "correct.json").read_text())["faults"]:
            break
    text = table(args.output)
    (args.output / "table.md").write_text(text + "\n")
    print("\n" + text)
    correct = args.output / "correct.json"
    return int(correct.exists() and bool(json.loads(correct.read_text()).get("faults")))


if __name__ == "__main__":
    sys.exit(main())
