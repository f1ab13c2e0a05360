"""How memory, time and start-up grow, measured and drawn: `python benchmarks/growth.py --picture docs/pictures/growth.svg`.

Four panels, every point from a process of its own with one thread: the update's peak memory over vocabulary and over the
batch at one token budget (flat), its CPU seconds over tokens (linear), and the seconds from typing a command to its answer.
`--prompts 1000 --prompts 1000000` also generates JSONL files of that many rows (about 1,000 bytes each) and says what
`train` needs until its prompts are ready. Figures go to JSON beside the picture.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent / "peers"))
VOCABULARIES, BATCHES, TOKENS = (32_768, 65_536, 151_936), (8, 32, 128), (256, 512, 1024, 2048)
COMMANDS = {
    "--help": ["-m", "poweropd_lite.train", "--help"],
    "import train": ["-c", "from poweropd_lite.train.start import train"],
    "a first step": ["-m", "poweropd_lite.train", "--config", "bundled", "--steps", "1", "--eval-problems", "1",
                     "--eval-samples", "1", "--output"],
}  # fmt: skip


def update(vocabulary: int, lines: int, length: int, budget: int, full: bool) -> dict:
    """Returns seconds and peak of one step's update after another, on `lines` rollouts of `length` new tokens."""
    import torch
    from cases import SHAPES, Case, make_models, rollouts_of
    from loops import Ours
    from measure import Meter
    from shapes import Shape

    torch.set_num_threads(1)
    SHAPES["growth-student"] = Shape(128, 2, 4, 2, 384, True, vocabulary, 32)
    SHAPES["growth-teacher"] = Shape(192, 2, 6, 2, 576, True, vocabulary, 32)
    case = Case("growth", "growth-student", "growth-teacher", lines, 8, length, False, lines)
    student, teacher = make_models(case, not full)
    method = Ours(case, student, teacher, "power")
    method.config = method.config.model_copy(update={"token_budget": budget})
    meter = Meter()
    for _ in range(2):
        meter.start()
        method.step(rollouts_of(case))
        meter.end()
    return {"seconds": meter.seconds, "peak_mib": meter.peak_mib()}


def prompts(rows: int, folder: Path) -> dict:
    """Returns seconds and MiB until the prompts of a generated file are ready, as a run's start makes them, at the first
    start and at the next; and seconds until those of a late step are at hand.
    """
    file = folder / f"{rows}.jsonl"
    write_rows(file, rows)
    code = (
        "import json, sys, time; from measure import Meter\n"
        "from poweropd_lite.base.config import load_config; from poweropd_lite.run.inputs import _of_prompts\n"
        "from poweropd_lite.problems.prompts import step_indices; from poweropd_lite.run.session import prepare\n"
        "c = load_config('bundled', data=sys.argv[1], eval_problems=1, max_prompt_tokens=400, hold_out=100)\n"
        "meter, began, cpu = Meter(), time.monotonic(), time.process_time()\n"
        "ready = prepare(c, lambda text: print(text, file=sys.stderr)); digest = _of_prompts(ready.prompts)\n"
        "cpu, seconds, late = time.process_time() - cpu, time.monotonic() - began, time.monotonic()\n"
        "ids = [ready.prompts[i].ids for i in step_indices(len(ready.prompts), c.batch_size, 0, 1_000_000)]\n"
        "print(json.dumps({'prompts': len(ready.prompts), 'sha256': digest, 'seconds': seconds, 'cpu_seconds': cpu,\n"
        "'late_step_seconds': time.monotonic() - late, 'peak_mib': meter.peak_mib()}))"
    )
    found = {"rows": rows, "bytes": file.stat().st_size}
    for time_of in ("first", "again"):
        found[time_of] = json.loads(run(["-c", code, str(file)], HF_ASSETS_CACHE=str(folder)).splitlines()[-1])
    file.unlink()
    return found


def write_rows(file: Path, rows: int) -> None:
    """Writes rows of a problem, a worked solution and an answer."""
    dice = random.Random(0)
    with file.open("w") as out:
        for i in range(rows):
            a, b, c = (dice.randrange(1000) for _ in range(3))
            more = " ".join(str(dice.randrange(1000)) for _ in range(30))
            problem = (
                f"Row {i}: a shop sells {a} boxes of {b} pens on each of {c} days, and takes {more} back. How many?"
            )
            worked = (
                "First multiply the boxes by the pens of each, then by the days, and take away what came back. " * 7
            )
            row = {"problem": problem, "solution": f"{worked}\\boxed{{{a * b * c}}}", "answer": str(a * b * c)}
            out.write(json.dumps(row) + "\n")


def start_up(folder: Path) -> dict[str, float]:
    """Returns the seconds of every command, the best of two."""
    found = {}
    for name, command in COMMANDS.items():
        seconds = []
        for repeat in range(2):
            began = time.monotonic()
            run([*command, str(folder / f"run{repeat}")] if name == "a first step" else command)
            seconds.append(time.monotonic() - began)
        found[name] = min(seconds)
    return found


def run(args: list[str], **environment: str) -> str:
    """Returns what a fresh Python prints."""
    paths = [str(ROOT), str(Path(__file__).parent / "peers"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)}
    env |= environment
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{args}: {done.stderr[-2000:]}")
    return done.stdout


def point(**settings) -> dict:
    """Returns `update` of some settings, from a fresh process."""
    return settings | json.loads(run([__file__, "--here", json.dumps(settings)]).splitlines()[-1])


def draw(found: dict, picture: Path) -> None:
    """Draws the four panels."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    panels = [
        ("vocabulary", "vocabulary", "peak_mib", "MiB over models", "memory over vocabulary, LoRA"),
        ("batch", "lines", "peak_mib", "MiB over models", "memory over rollouts a step"),
        ("tokens", "tokens", "seconds", "CPU seconds", "time of the update over tokens"),
    ]
    for axis, (name, x, y, label, title) in zip(axes, panels, strict=False):
        axis.plot([p[x] for p in found[name]], [p[y] for p in found[name]], "o-")
        axis.set(xlabel="rollouts" if x == "lines" else x, ylabel=label, title=title, ylim=(0, None), xlim=(0, None))
    axes[3].barh(list(found["start"]), list(found["start"].values()))
    axes[3].set(xlabel="seconds", title="from typing to the answer")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "pictures" / "growth.svg")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "peers" / "results" / "growth.json")
    parser.add_argument("--prompts", type=int, action="append", default=[], help="rows of a generated file (again)")
    parser.add_argument("--only-prompts", action="store_true", help="no picture")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(update(**json.loads(args.here))))
        return
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        if not args.only_prompts:
            same = {"budget": 1024, "full": False}
            found["vocabulary"] = [point(vocabulary=v, lines=8, length=120, **same) for v in VOCABULARIES]
            found["batch"] = [point(vocabulary=32_768, lines=n, length=120, **same) for n in BATCHES]
            found["tokens"] = [
                point(vocabulary=32_768, lines=n // 128, length=128, **same) | {"tokens": n} for n in TOKENS
            ]
            found["start"] = start_up(Path(temporary))
            draw(found, args.picture)
        if args.prompts:
            found["prompts"] = [prompts(rows, Path(temporary)) for rows in args.prompts]
    found["command"] = "python benchmarks/growth.py " + " ".join(sys.argv[1:])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
