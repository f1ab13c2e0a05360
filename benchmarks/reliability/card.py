"""The card's own faults, planted on the CPU: memory that runs out in each phase, a driver's error, an engine that gives less.

`python benchmarks/reliability/card.py`: each ends in one message and exit code 2, and --resume then ends as an undisturbed run
does; or the run goes on by itself, having said and counted what was done again or dropped. A vLLM that dies is in tests/engines.
"""

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import trials
from trials import HERE, RESUME, TRAIN, Folders, Tally, contents, first_difference, forked, one_message, run

PHASES = (
    "load",
    "sync",
    "sample",
    "stream",
    "teacher",
    "student",
    "backward",
    "guard",
    "optimizer",
    "evaluate",
    "save",
    "hand over",
)
# Of the engine and of single rows; one call comes before the first step: that of the KL at the first evaluation.
ENGINE = [("engine", fault, call) for fault in ("short", "cut") for call in (0, 1, 2, 4)]
ROWS = [(phase, fault, call) for phase in ("student", "teacher") for fault in ("nan", "inf") for call in (1, 2, 3)]


def faulted(plan: dict, cwd: Path):
    """Trains with a planted fault."""
    return forked.run(str(HERE / "faulty.py"), json.dumps(plan), *TRAIN[1:], cwd=cwd)


def counted(folder: Path, said: str) -> str | None:
    """Returns what is wrong with a run that went on: what was done again or dropped should be counted, and said."""
    summary = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))
    again, dropped = summary["out_of_memory"], summary["dropped_steps"]
    if again or dropped:
        return None if "out of memory" in said or "dropped" in said else f"{again} + {dropped} counted, and not said"
    words = (
        "KL nan",
        "out of memory with",
        "out of memory: the step is repeated",
        "no reference.json beside the weights",
    )
    return None if any(word in said for word in words) else "it ended well, and nothing was counted or said"


def attempt(plan: dict, whole: dict, folder: Path) -> str | None:
    """Returns what is wrong with how a planted fault ended."""
    done = faulted(plan, folder)
    if done.returncode in (0, 1):
        return counted(folder, done.stdout) if "Traceback" not in done.stderr else done.stderr[-300:]
    if wrong := one_message(done):
        return wrong
    again = RESUME if (folder / "run" / "config.yaml").is_file() else TRAIN
    done = run(*again, cwd=folder)
    if done.returncode != 0:
        return f"resumed: code {done.returncode}: {done.stderr[-300:]}"
    return first_difference(whole, contents(folder / "run"))


def main() -> int:
    """The command line."""
    args = trials.parser(__doc__.splitlines()[0], 1000, 16).parse_args()
    plans = [(phase, fault, call) for phase, fault, call in product(PHASES, ("memory", "driver"), (0, 1, 2))]
    plans = [plan for plan in plans if plan[0] not in ("load", "hand over") or plan[2] == 0] + ENGINE + ROWS
    plans = plans[:: max(1, len(plans) // args.short)] if args.short else plans[: args.tries]
    tally = Tally("card", bool(args.short), "the card's own faults, planted on the CPU")
    with Folders() as folders:
        whole = contents(trials.trained(folders) / "run")
        for phase, fault, call in plans:
            folder = folders.new()
            wrong = attempt({"phase": phase, "fault": fault, "call": call}, whole, folder)
            tally.tell(wrong, f"{fault} in call {call} of {phase}")
            shutil.rmtree(folder)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
