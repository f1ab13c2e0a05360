"""A disk that is full, broken, read-only or over its quota, at any write: one message, and what was there goes on.

`python benchmarks/reliability/disk.py`: at each write of train, evaluate, export and reproduce the system says ENOSPC, EIO, EROFS or
EDQUOT, in turns (planted.py); then no file may grow beyond so many bytes (RLIMIT_FSIZE); then, for root, all happens on a real
small disk (tmpfs) of growing sizes. The command must end with code 2 and one message, and started again on a sound disk it
must end as if nothing had been. Where it does not need the write that failed, it may also end well, and say what it leaves
to the next start; a queue goes on without the runs that failed, with code 1.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import trials
from kills import EXPORT, JOBS, Job, settled
from trials import Folders, Tally, contents, first_difference, one_message, run, writes_of

FAULTS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
LEFT = (
    "can't be removed; the next export",
    "was not drawn: ",
    "--retry-failed tries it again",
)  # what the next start does


def went_on(job: Job, whole: dict, folder: Path, done) -> str | None:
    """Returns what is wrong with how a command ended, or with how it then went on."""
    again = job.again or (lambda _: job.command)
    for _ in range(3):  # a queue whose own record was lost may tell of a failed run only when it is started again
        left = [words for words in LEFT if words in done.stdout]
        if done.returncode != 0 and not (done.returncode == 1 and LEFT[-1] in left) and (fault := one_message(done)):
            return fault
        settled(folder)
        if done.returncode == 0 and not left:
            break
        done = run(*again(folder), *(["--retry-failed"] if LEFT[-1] in left else []), cwd=folder)
    else:
        return f"started again three times: code {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}"
    found = {k: v for k, v in contents(folder).items() if "/checkpoints/step_" not in k or k in whole}
    if "can't be read; the file is kept as" in done.stdout:  # a line that was written by half, and then again
        found = {k: v for k, v in found.items() if "/damaged_" not in k}
    return first_difference(whole, found)


def on_small_disk(job: Job, whole: dict, begin: Path, size: int, folders: Folders) -> str | None:
    """Runs a job on a disk of so many KiB that is then made larger."""
    folder = folders.new()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], capture_output=True)
    assert mounted.returncode == 0, mounted.stderr
    try:
        shutil.copytree(begin, folder, dirs_exist_ok=True)
        done = run(*job.command, cwd=folder)
        subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
        return went_on(job, whole, folder, done)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def main() -> int:
    """The command line."""
    parser = trials.parser(__doc__.splitlines()[0], 0, 12)
    parser.add_argument("--job", help="of these only, by the start of its name")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    tally = Tally("disk", bool(args.short), "a full disk, EIO, a read-only disk and a quota at every write of train, evaluate, export, reproduce")  # fmt: skip
    counts: dict[str, str] = {}
    with Folders() as folders:
        begins = {"nothing": folders.new(), "run": trials.trained(folders)}
        begins["export"] = folders.new(begins["run"])
        assert run(*EXPORT, "--to", "adapter", cwd=begins["export"]).returncode == 0
        for job in JOBS:
            if (args.job and not job.name.startswith(args.job)) or (args.short and job.name == "reproduce"):
                continue
            begin = begins[job.begins]
            place = folders.new(begin)
            writes = writes_of(*job.command, cwd=place)
            whole, size = contents(place), max(f.stat().st_size for f in place.rglob("*") if f.is_file())
            used = sum(-(-f.stat().st_size // 4096) * 4 for f in place.rglob("*") if f.is_file())  # KiB
            start = sum(-(-f.stat().st_size // 4096) * 4 for f in begin.rglob("*") if f.is_file())
            many = 8 if job.name != "reproduce" else 4
            places = list(range(len(writes)))
            limits, sizes = [size * (i + 1) // (many + 1) for i in range(many)], []  # what it prints is a file, too
            if os.geteuid() == 0 and not args.short:
                sizes = [start + 64 + (used - start) * i // many for i in range(many)]
            if args.short:
                places, limits = rng.sample(places, args.short // 5), limits[:0]
            print(f"{job.name}: {len(places)} writes, {len(limits)} quotas, {len(sizes)} disks", flush=True)
            counts[job.name] = f"{len(places)} writes, {len(limits)} quotas, {len(sizes)} real disks"
            for i, at in enumerate(places):
                folder, fault = folders.new(begin), FAULTS[(i + args.seed) % len(FAULTS)]
                done = run(*job.command, cwd=folder, plan={"at": at, "fault": fault})
                tally.tell(went_on(job, whole, folder, done), f"{job.name}, {fault} at write {at} ({writes[at]})")
                shutil.rmtree(folder)
            for most in limits:
                folder = folders.new(begin)
                done = run(*job.command, cwd=folder, plan={"at": -1, "fault": "none", "most": most})
                tally.tell(went_on(job, whole, folder, done), f"{job.name}, files of at most {most} bytes")
                shutil.rmtree(folder)
            for kib in sizes:
                tally.tell(on_small_disk(job, whole, begin, kib, folders), f"{job.name}, a disk of {kib} KiB")
        tally.more = {"jobs": counts}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
