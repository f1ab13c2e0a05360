"""Measures this project on a card: `python benchmarks/gpu/run.py --output gpu_results --seconds 240`.

Correctness first, then what tells most (parts.py has the order), in Qwen3's true shapes with random weights. It runs from a
checkout on Python 3.11 or newer with torch 2.11 or newer, transformers, peft and pydantic, without the hub; bitsandbytes
(else the teacher stays in 16 bits), vLLM and Unsloth are used where they are installed. `--list` says what each part is and
how many seconds it needs; `--seconds N` runs the first parts that fit, `--part NAME` one, neither all; `--table` only prints
the table (with `--plan` of planned memory, too), `--tiny` runs small shapes on whatever is here (the tests do).

Each part is a process of its own, which imports while the one before it measures and is stopped at four times its seconds or
at the end of N; each writes its JSON (and what it printed, as a log) as it ends, so what was measured before a stop stays.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from parts import BY_NAME, PARTS, Part, fitting, next_part
from table import table

ALWAYS = ("card", "correct")  # nothing is timed on a card where these fail


def measure(part: Part, tiny: bool) -> dict:
    """Returns the figures of a part, with what they were measured on."""
    began = time.perf_counter()
    module = importlib.import_module(part.module)
    figures = module.measure(tiny) if part.step is None else module.measure(part.step, tiny)
    return {**about(), **figures, "seconds_in_all": time.perf_counter() - began}


def about() -> dict[str, str | None]:
    """Returns the card, the version of torch, and the commit if this is a checkout of git."""
    import torch

    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        commit = said.stdout.strip() or None
    except OSError:
        commit = None
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": name, "torch": torch.__version__, "commit": commit}


def prepare(part: Part) -> None:
    """Imports what a part needs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if part.step is not None and part.step.loader == "unsloth":
        import unsloth  # noqa: F401  # before transformers
    import peft  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    importlib.import_module(part.module)


class Child:
    """The process of one part, importing until `run`."""

    def __init__(self, part: Part, out: Path, tiny: bool) -> None:
        self.part, self.out = part, out
        for kind in ("json", "log"):
            (out / f"{part.name}.{kind}").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--here", "--wait", "--part", part.name, "--output", str(out)]
        with (out / f"{part.name}.log").open("w") as log:
            self.process = subprocess.Popen(
                command + ["--tiny"] * tiny, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def run(self, limit: float) -> str:
        """Lets it measure for at most `limit` seconds; returns what went wrong, or nothing."""
        try:
            self.process.communicate("go\n", timeout=limit)
        except subprocess.TimeoutExpired:
            self.stop()
            return f"stopped after {limit:.0f} s"
        if not self.process.returncode:
            return ""
        said = (self.out / f"{self.part.name}.log").read_text(errors="replace").splitlines()
        errors = [line for line in said if "Error" in line]
        return errors[-1][:300] if errors else f"ended with code {self.process.returncode}"

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


def run_all(queue: list[Part], seconds: float | None, out: Path, tiny: bool) -> int:
    """Runs parts one after the other, in `seconds` if given; returns 1 if the card is not right."""
    began, ready = time.perf_counter(), None

    def left() -> float:
        return float("inf") if seconds is None else seconds - (time.perf_counter() - began)

    while part := next_part(queue, left()):
        queue.remove(part)
        if ready is not None and ready.part is not part:
            ready.stop()
            ready = None
        child = ready or Child(part, out, tiny)
        print(f"{part.name}: {part.about}, about {part.seconds} s", flush=True)
        limit, started = min(4 * part.seconds + 60, left()), time.perf_counter()
        following = next_part(queue, left() - part.seconds)
        ready = None if following is None else Child(following, out, tiny)
        fault = child.run(limit)
        took = time.perf_counter() - started
        print(f"{part.name}: {fault + f' (see {part.name}.log)' if fault else 'done'}, {took:.0f} s", flush=True)
        file = out / f"{part.name}.json"
        if fault and not file.exists():  # figures stay, if it was its end alone that failed
            file.write_text(json.dumps({"failed": fault}))
        figures = json.loads(file.read_text())
        if part.name in ALWAYS and ("failed" in figures or figures.get("faults")):
            if ready is not None:
                ready.stop()
            return 1
    for part in queue:
        print(f"{part.name}: left out, it needs about {part.seconds} s", flush=True)
    return 0


def runnable(parts: Sequence[Part]) -> list[Part]:
    """Returns those parts whose packages are here, and says which are not."""
    for part in parts:
        if lacks := part.lacks():
            print(f"{part.name}: left out, {lacks} is not installed", flush=True)
    return [part for part in parts if not part.lacks()]


def main() -> int:
    """The command line; returns 1 if something is wrong on this card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_results"), help="folder of the JSON files")
    parser.add_argument("--part", choices=BY_NAME, action="append", help="run only this part (again: and this one)")
    parser.add_argument("--seconds", type=float, help="run the most telling parts that fit")
    parser.add_argument("--list", action="store_true", help="only say what there is, and the seconds each needs")
    parser.add_argument("--tiny", action="store_true", help="small shapes: does it run here?")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--plan", action="store_true", help="with --table: add what plan foresees (minutes, no card)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    wanted = [part for part in PARTS if args.part is None or part.name in args.part]
    if args.list:
        chosen = fitting(wanted, float("inf") if args.seconds is None else args.seconds)
        print("\n".join(f"{part.name:26} {part.seconds:4} s  {part.about}" for part in chosen))
        print(f"{len(chosen)} parts, {sum(part.seconds for part in chosen)} s")
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    if args.here:
        (part,) = wanted
        prepare(part)
        if not args.wait or sys.stdin.readline():  # the line that says go, or nothing if who started this has ended
            figures = measure(part, args.tiny)
            (args.output / f"{part.name}.json").write_text(json.dumps(figures, indent=1))
        return 0
    if args.table:
        if args.plan:
            import planned

            planned.add(args.output)
        print(table(args.output))
        return 0
    queue = runnable(wanted)
    if args.tiny:
        import torch

        queue = [part for part in queue if torch.cuda.is_available() or not part.card]
    chosen = queue if args.seconds is None else fitting(queue, args.seconds)
    print(f"{len(chosen)} parts, about {sum(part.seconds for part in chosen)} s", flush=True)
    wrong = run_all(queue, args.seconds, args.output, args.tiny)
    text = table(args.output)
    (args.output / "table.md").write_text(text + "\n")
    print("\n" + text)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
