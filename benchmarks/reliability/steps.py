"""5,000 steps: memory, open files and the run's folder stay as they are: `python benchmarks/reliability/steps.py`, some minutes.

Each hundred steps are a try: after step 500 the process's resident size must stay within 3% of what it was then, and the
numbers of its descriptors and of the folder's files must not grow. Steps are as small as they can be.
"""

import json
import sys

import trials
from trials import DATA, Folders, Tally, flags, forked

SETTLED, EVERY, MOST = 500, 100, 1.03
SMALLEST = {
    "batch-size": 1,
    "max-new-tokens": 8,
    "data": DATA,
    "eval-benchmarks": "none",
    "save-every": 200,
    "lora-rank": 4,
}
WATCHED = f"""
import json, os, sys
from pathlib import Path
from poweropd_lite.cli import run_command
from poweropd_lite.run.recorder import Recorder
from poweropd_lite.train import __main__ as command
real = Recorder.step
def step(self, *args):
    real(self, *args)
    if self.state.step % {EVERY} == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = sum(1 for _ in self.run.path.rglob("*"))
        facts = dict(step=self.state.step, mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors=len(os.listdir("/proc/self/fd")), files=files)
        with open("watched.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\\n")
Recorder.step = step
run_command(lambda: command.main(sys.argv[1:]))
"""


def main() -> int:
    """The command line."""
    parser = trials.parser(__doc__.splitlines()[0], 5000, 800)
    args = parser.parse_args()
    steps = args.short or args.tries
    tally = Tally("steps", bool(args.short), "5,000 steps: resident size, descriptors and files after step 500")
    with Folders() as folders:
        place = folders.new()
        command = ["--config", "bundled", *flags({**SMALLEST, "steps": steps}), "--output", "run"]
        process = forked.start("-c", WATCHED, *command, cwd=place)
        said = process.stdout.read()
        assert process.wait() == 0, said[-2000:]
        seen = [json.loads(line) for line in (place / "watched.jsonl").read_text(encoding="utf-8").splitlines()]
    settled = next(facts for facts in seen if facts["step"] == SETTLED)
    for facts in (facts for facts in seen if facts["step"] > SETTLED):
        grown = [name for name in ("descriptors", "files") if facts[name] > settled[name]]
        fault = f"{facts} after {settled}" if grown or facts["mib"] > MOST * settled["mib"] else None
        tally.tell(fault, f"step {facts['step']}")
    tally.more = {"at_step_500": settled, "at_the_end": seen[-1]}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
