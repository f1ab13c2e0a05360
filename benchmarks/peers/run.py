"""Ours beside its peers, in one run: `python benchmarks/peers/run.py --output OUT`.

Two works: the scoring step (given rollouts: score, loss, backward, clip, AdamW) and the whole step (rollouts first). Methods:
ours; TRL's DistillationTrainer and GKDTrainer, where TRL is installed (install.sh); plain, on full float32 logits; lean, a
loop with nothing but the maths (loops.py). Every figure comes from a fresh process with one thread: a step to warm up, then one
that counts; methods alternate, `--repeats` times. On a card (found by itself) shapes are Qwen3's true ones, seconds the
clock's and memory the card's. Before anything is timed, all methods compute one gradient in small shapes: how far they are
apart stands in the JSON.
"""

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = {  # method: (loop, every weight?, reward)
    "lean, every weight, power": ("lean", True, "power"),
    "ours, every weight, power": ("ours", True, "power"),
    "ours, every weight, power, 267 forbidden": ("forbidden", True, "power"),
    "ours, LoRA, power": ("ours", False, "power"),
    "ours, every weight, full_kl": ("ours", True, "full_kl"),
    "ours, LoRA, full_kl": ("ours", False, "full_kl"),
    "plain, every weight, power": ("plain", True, "power"),
    "plain, every weight, full_kl": ("plain", True, "full_kl"),
    "TRL DistillationTrainer, every weight": ("trl", True, "full_kl"),
    "TRL DistillationTrainer, LoRA": ("trl", False, "full_kl"),
    "TRL GKDTrainer, every weight": ("gkd", True, "full_kl"),
}
LEAN, TRL = "lean, every weight, power", "TRL DistillationTrainer, every weight"
LIMIT_SECONDS = 900
QUICK = [name for name in METHODS if "forbidden" not in name and "LoRA, full_kl" not in name]


def main() -> int:
    """The command line; returns 1 if the methods do not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder of the JSON files (default: print only)")
    parser.add_argument("--work", choices=["scoring", "whole"], action="append", help="only this work")
    parser.add_argument(
        "--method", choices=list(METHODS), action="append", help="only this method (again: and this one)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat of the methods that the goals name")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, one repeat: does it run, is it the same maths?"
    )
    parser.add_argument("--card", action="store_true", help="true shapes; without it, too, where CUDA is")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return run_here(args)
    methods, left_out = args.method or (QUICK if args.quick else list(METHODS)), ""
    if importlib.util.find_spec("trl") is None:
        methods = [name for name in methods if not name.startswith("TRL")]
        left_out = "TRL is not installed: its trainers are left out (bash benchmarks/peers/install.sh)"
        print(left_out, flush=True)
    facts = child(args, [*methods], work="agreement")
    if "failed" in facts:
        print(f"the methods could not be compared: {facts['failed']}")
        return 1
    wrong = {name: far for name, far in facts["apart"].items() if far > 1e-3}
    print(
        "\n".join(f"{name}: its gradient is {far:.1e} from plain's" for name, far in facts["apart"].items()), flush=True
    )
    if wrong:
        print(f"not the same maths: {', '.join(wrong)}")
        return 1
    for work in args.work or ["scoring", "whole"]:
        runs: dict[str, list[dict]] = {name: [] for name in methods}
        for repeat in range(1 if args.quick or args.tiny else args.repeats):
            for name in methods[:: 1 if repeat % 2 == 0 else -1]:
                found = child(args, [name], work)
                runs[name].append(found)
                print(f"{work} {repeat + 1}: {name}: {found}", flush=True)
        lines = table(runs)
        print(f"\n{work}, {facts['machine']['device']}\n\n" + "\n".join(lines) + "\n", flush=True)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            command = "python benchmarks/peers/run.py " + shlex.join(sys.argv[1:])
            said = {"command": command, "work": work, "left_out": left_out, **facts, "runs": runs, "table": lines}
            kind = "card" if facts["machine"]["cuda"] else "cpu"
            (args.output / f"{kind}-{work}.json").write_text(json.dumps(said, indent=1) + "\n")
    return 0


def child(args: argparse.Namespace, methods: list[str], work: str) -> dict:
    """Returns what a fresh process measures, or {"failed": why}."""
    command = (
        [sys.executable, __file__, "--here", "--work", work]
        if work != "agreement"
        else [sys.executable, __file__, "--here"]
    )
    command += [word for name in methods for word in ("--method", name)]
    command += ["--tiny"] * args.tiny + ["--card"] * args.card
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | {"TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=os.environ | one)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {LIMIT_SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    faults = [line for line in done.stderr.splitlines() if "Error" in line]
    return {"failed": (faults[-1] if faults else f"ended with code {done.returncode}")[:300]}


def run_here(args: argparse.Namespace) -> int:
    """What a fresh process does: prints its facts as JSON in its last line."""
    sys.path.insert(0, str(Path(__file__).parent))
    import measure

    methods = {name: METHODS[name] for name in args.method}
    if args.work:
        (loop, full, reward), (work,) = *methods.values(), args.work
        facts = measure.step(loop, full, reward, work, args.tiny, measure.on_card(args.card, args.tiny))
    else:
        facts = {"apart": measure.apart(methods), "machine": measure.machine(), "versions": measure.versions()}
    print(json.dumps(facts))
    return 0


def table(runs: dict[str, list[dict]]) -> list[str]:
    """Returns the Markdown of a work: the smallest seconds, peaks, and ratios to lean and TRL, repeat by repeat."""
    head = ["", "seconds", "MiB over loaded models", "seconds over lean's", "seconds over TRL's", "MiB over TRL's"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, found in runs.items():
        if good := [f for f in found if "failed" not in f]:
            seconds, peaks = ([f[key] for f in good] for key in ("seconds", "peak_mib"))
            cells = [spread(seconds, "{:.1f}" if max(seconds) >= 1 else "{:.3f}"), spread(peaks, "{:,.0f}")]
            pairs = ((LEAN, "seconds"), (TRL, "seconds"), (TRL, "peak_mib"))
            cells += [ratios(found, runs.get(to, []), key) for to, key in pairs]
        else:
            cells = [found[0]["failed"], *[""] * 4]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def ratios(ours: list[dict], theirs: list[dict], key: str) -> str:
    """Returns the median and the spread of a ratio, of the repeats in which both were measured."""
    both = [a[key] / b[key] for a, b in zip(ours, theirs, strict=False) if key in a and b.get(key)]
    return spread(both, "{:.2f}") if both else ""


def spread(values: list[float], form: str) -> str:
    """Returns the median and, where there are several, (smallest to largest)."""
    middle = form.format(statistics.median(values))
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else middle


if __name__ == "__main__":
    sys.exit(main())
