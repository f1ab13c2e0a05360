"""Hostile answers and golds to the grader: `python benchmarks/reliability/hostile.py`, 2,000 of them in about ten minutes.

None may crash it, be right, or take more than a second of processor time or a GiB, here or in a judge; the released code's
way is asked of each, too, whose verdict is not ours to judge.
"""

import contextlib
import os
import resource
import sys
import time

import trials

sys.path.insert(0, str(trials.ROOT / "tests" / "reliability"))

from hostile_samples import hostile_samples

from poweropd_lite.grade import Sample, grade, is_correct, quick_verdict
from poweropd_lite.grade.answers import final_answer
from poweropd_lite.grade.judges import judges

SECONDS, MEMORY = 1.0, 2**30
BATCH = 25


def reading_seconds(sample: Sample) -> float:
    """Returns the processor time of what is done in this process: the judges' is the kernel's to end."""
    before = time.process_time()
    answer = final_answer(sample.completion, sample.benchmark)
    if answer is not None:
        quick_verdict(sample.gold, answer, sample.tolerance)
    return time.process_time() - before


def main() -> int:
    asked = trials.parser(__doc__.splitlines()[0], tries=2000, short=100).parse_args()
    samples = hostile_samples(asked.short or asked.tries, asked.seed)
    tally = trials.Tally("hostile", bool(asked.short), "hostile answers and golds to the grader")
    undecided, slowest = 0, 0.0
    with trials.Folders() as folders, contextlib.chdir(folders.new()):
        for start in range(0, len(samples), BATCH):
            some = samples[start : start + BATCH]
            verdicts = grade(some, official=True)
            for i, (sample, verdict) in enumerate(zip(some, verdicts, strict=True), start):
                undecided += verdict.undecided
                slowest = max(slowest, spent := reading_seconds(sample))
                told = f"{spent:.2f} s of processor time" if spent > SECONDS else None
                told = "right" if verdict.correct else told
                tally.tell(told, f"{i}: gold {sample.gold[:60]!r}, completion {sample.completion[:60]!r}")
        tally.tell(None if is_correct("\\boxed{x+1}", "1+x") else "the judges are not well", "afterwards")
        tally.tell(f"code ran: {os.listdir()}" if os.listdir() else None, "the folder")
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        judges().process.stdin.close()
        # The largest of parent and workers. (RUSAGE_CHILDREN would count what a shell ran before it became this process.)
        theirs = os.wait4(judges().process.pid, 0)[2].ru_maxrss * 1024
        for name, most in (("this process", own), ("a judge", theirs)):
            tally.tell(f"{most / 2**30:.2f} GiB" if most > MEMORY else None, f"memory of {name}")
    tally.more = {"undecided": undecided, "slowest": round(slowest, 3), "judge_mib": theirs >> 20}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
