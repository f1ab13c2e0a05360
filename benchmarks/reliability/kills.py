"""Killed at any write or moment, also while it resumes, a command that is started again ends as if nothing had been.

`python benchmarks/reliability/kills.py`: train, evaluate, export and reproduce are ended by SIGKILL at writes spread over all of
theirs (four in five; half of what was written is there, and at random what had not been brought to the disk is lost too, as
where the power goes) and at random moments. Each is started again, half of them killed once more, and started again. The folder must then
hold what an undisturbed run's does, byte for byte but for times, and nothing else.
"""

import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trials
from trials import RESUME, TRAIN, Folders, Tally, contents, first_difference, flags, run, writes_of

GRID = {"pairs": "bundled", "rewards": "power", "alphas": "10", "seeds": "0", "problems": 2, "n": 1, "jobs": 1}
EVALUATE = ["poweropd_lite.evaluate", "--model", "run", "--n", "2", "--problems", "4", "--batch-size", "3", "--max-new-tokens", "24", "--output", "out"]  # fmt: skip
EXPORT = ["poweropd_lite.export", "run", "--output", "out", "--overwrite"]
REPRODUCE = [
    "poweropd_lite.reproduce",
    *flags({**GRID, **trials.SIZES, "steps": 2, "data": trials.DATA, "output": "out"}),
]


def resume(folder: Path) -> list[str]:
    """Training goes on with --resume where there is a run, and begins anew where it was killed before there was one."""
    return RESUME if (folder / "run" / "config.yaml").is_file() else TRAIN


@dataclass(frozen=True)
class Job:
    """A command that is killed: what it is started with again, and the folder that is compared."""

    name: str
    command: list[str]
    begins: str  # what is in the folder before it: nothing, a run, or a run and an earlier export
    again: Callable[[Path], list[str]] | None = None


JOBS = [
    Job("train", TRAIN, "nothing", resume),
    Job("evaluate", EVALUATE, "run"),
    Job("export adapter", [*EXPORT, "--to", "adapter"], "run"),
    Job("export merged-16bit over another", [*EXPORT, "--to", "merged-16bit"], "export"),
    Job("export gguf", [*EXPORT, "--to", "gguf", "--gguf-type", "q8_0"], "run"),
    Job("reproduce", REPRODUCE, "nothing"),
]
SHARES = (0.4, 0.15, 0.1, 0.1, 0.1, 0.15)  # of all tries


@dataclass
class Whole:
    """A job undisturbed: what its folder holds then, its writes, and its seconds."""

    begin: Path  # to be copied
    contents: dict
    writes: list[str]
    seconds: float


def undisturbed(job: Job, begins: dict[str, Path], folders: Folders) -> Whole:
    """Runs a job to its end."""
    place = folders.new(begins[job.begins])
    writes = writes_of(*job.command, cwd=place)
    timed = folders.new(begins[job.begins])
    started = time.monotonic()
    assert run(*job.command, cwd=timed).returncode == 0
    seconds = time.monotonic() - started
    whole = contents(place)
    assert (fault := first_difference(whole, contents(timed))) is None, f"{job.name} twice undisturbed: {fault}"
    shutil.rmtree(timed)
    return Whole(begins[job.begins], whole, writes, seconds)


def killed_at_random(command: list[str], folder: Path, seconds: float) -> int:
    """Starts a command and ends it after so many seconds; returns its code."""
    import forked

    with open(folder.parent / "said.txt", "w", encoding="utf-8") as said:
        process = forked.start("-m", *command, cwd=folder, file=said)
        time.sleep(seconds)
        process.kill()
        return process.wait()


def settled(folder: Path) -> None:
    """Waits for what a killed queue left at work, which is asked to end and holds a lock until it has saved."""
    import fcntl

    for lock in folder.glob("out/logs/.*.lock"):
        with open(lock) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)


def attempt(job: Job, whole: Whole, at: int | None, twice: bool, rng: random.Random, folders: Folders) -> str | None:
    """Kills a job at a write, or at a random moment (None), and starts it again; returns what is then wrong."""
    folder = folders.new(whole.begin)
    again, fault = job.again or (lambda _: job.command), rng.choice(("kill", "cut"))
    if at is None:
        code = killed_at_random(job.command, folder, rng.uniform(0.0, whole.seconds))
        if code not in (0, -signal.SIGKILL):
            return f"ended with {code} before it was killed"
    else:
        done = run(*job.command, cwd=folder, plan={"at": at, "fault": fault})
        if done.returncode != -signal.SIGKILL:
            return f"was not killed: code {done.returncode}: {done.stderr[-300:]}"
    settled(folder)
    if twice:
        second = rng.randrange(len(whole.writes))
        done = run(*again(folder), cwd=folder, plan={"at": second, "fault": fault})
        if done.returncode not in (0, -signal.SIGKILL):
            return f"started again and killed at write {second}: code {done.returncode}: {done.stderr[-300:]}"
        settled(folder)
    done = run(*again(folder), cwd=folder)
    if done.returncode != 0:
        return f"started again: code {done.returncode}: {done.stderr[-400:]}"
    found = contents(folder)
    if job.name == "reproduce":  # its runs are asked to end when it is killed, and save where they stand
        found = {k: v for k, v in found.items() if "/checkpoints/step_" not in k or k in whole.contents}
    wrong = first_difference(whole.contents, found)
    if wrong is None:
        shutil.rmtree(folder)
    return wrong


def main() -> int:
    """The command line."""
    parser = trials.parser(__doc__.splitlines()[0], 200, 12)
    parser.add_argument("--job", help="of these only, by the start of its name")
    args = parser.parse_args()
    tries, rng = args.short or args.tries, random.Random(args.seed)
    tally = Tally("kills", bool(args.short), "SIGKILL at each write, and at random moments, of train, evaluate, export, reproduce; also during the resume")  # fmt: skip
    with Folders() as folders:
        begins = {"nothing": folders.new(), "run": trials.trained(folders)}
        begins["export"] = folders.new(begins["run"])
        assert run(*EXPORT, "--to", "adapter", cwd=begins["export"]).returncode == 0
        counts: dict[str, str] = {}
        for job, share in zip(JOBS, SHARES, strict=True):
            if args.job and not job.name.startswith(args.job):
                continue
            whole, many = undisturbed(job, begins, folders), max(1, round(tries * share))
            # Every write if there are enough tries, else evenly over them all; a fifth of the tries at random moments.
            at_random = 0 if args.short else many // 5
            many_at = many - at_random
            places = [round(i * (len(whole.writes) - 1) / max(1, many_at - 1)) for i in range(many_at)]
            if many_at == 1:
                places = [len(whole.writes) // 2]
            print(f"{job.name}: {len(whole.writes)} writes in {whole.seconds:.1f} s, {many} tries", flush=True)
            counts[job.name] = f"{many} tries, {len(whole.writes)} writes"
            for i, at in enumerate([*places, *[None] * at_random]):
                where = "a random moment" if at is None else f"write {at} ({whole.writes[at]})"
                fault = attempt(job, whole, at, bool(i % 2), rng, folders)
                tally.tell(fault, f"{job.name}, {where}{', twice' * (i % 2)}")
        tally.more = {"jobs": counts}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
