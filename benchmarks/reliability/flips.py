"""One flipped bit, a cut file, a swap: seen, and the last good one taken or a clear refusal.

`python benchmarks/reliability/flips.py`: a file of a checkpoint, of a run's adapter (reference.json too), of an export or of a
queue is damaged; what reads it must see it. Every twentieth time the whole command runs: a resume then goes on from the
checkpoint before and ends as an undisturbed run does, bit for bit. A file that nobody reads may change nothing: the command
that finds nothing wrong must then give what it gave before.
"""

import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trials
from kills import EVALUATE, EXPORT, REPRODUCE
from trials import RESUME, Folders, Tally, contents, first_difference, one_message, run

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import changed_since
from poweropd_lite.evaluate.target import find_target
from poweropd_lite.reproduce.state import read_queue
from poweropd_lite.run.checkpoint import PARTS, checkpoints

WHOLE_EVERY = 20  # tries in which the whole command runs, though a reader saw it already


def flip(file: Path, other: Path, rng: random.Random) -> str:
    """One bit of a file."""
    content = bytearray(file.read_bytes())
    byte, bit = rng.randrange(len(content)), rng.randrange(8)
    content[byte] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {byte} of {file.name}"


def cut(file: Path, other: Path, rng: random.Random) -> str:
    """A file's end is gone, or all of it but the name."""
    size = file.stat().st_size
    left = rng.choice((0, size // 2, size - 1, rng.randrange(size)))
    with open(file, "r+b") as handle:
        handle.truncate(left)
    return f"{file.name} cut to {left} of {size} bytes"


def swap(file: Path, other: Path, rng: random.Random) -> str:
    """The file of the same name of `other`, the folder of another run or step; one that is the same there is flipped."""
    theirs = other / file.name
    if not theirs.is_file() or theirs.read_bytes() == file.read_bytes():
        return flip(file, other, rng)
    shutil.copyfile(theirs, file)
    return f"{file.name} of {other.name}"


DAMAGES = (flip, flip, cut, swap)  # half of them a bit


@dataclass
class Place:
    """What is damaged: a folder's files, what reads them, and the command that does."""

    name: str
    share: float
    begin: Path  # a folder to be copied
    folder: str  # below it, or a file
    other: Path  # to swap with
    seen: Callable[[Path], bool]  # by the reader alone
    judge: Callable[[Path, bool], str | None]  # by the command; what is wrong, if the reader saw it or not


def refused(*command: str) -> Callable[[Path, bool], str | None]:
    """A command must refuse with one message, or, where nothing was seen, give what it gave before."""

    def judge(place: Path, seen: bool) -> str | None:
        done = run(*command, cwd=place)
        if done.returncode == 0 and not seen:
            return first_difference(judge.whole, contents(place / "out"))
        return one_message(done)

    return judge


def raises(read: Callable[[], object]) -> bool:
    """Whether it raises UserError."""
    try:
        read()
    except UserError:
        return True
    return False


def places(folders: Folders) -> list[Place]:
    """Makes what is damaged."""
    run_one = trials.trained(folders)
    run_two = folders.new()
    other_seed = [*trials.TRAIN, "--seed", "1"]
    assert run(*other_seed, cwd=run_two).returncode == 0
    whole = contents(run_one / "run")
    needed = ("state.json", *(f"{name}.safetensors" for name in PARTS))

    def resumed(place: Path, seen: bool) -> str | None:
        done = run(*RESUME, cwd=place)
        if done.returncode != 0:
            return f"code {done.returncode}: {done.stderr[-300:]}"
        if seen and "set aside as" not in done.stdout:
            return "nothing was said of it"
        aside = list(place.glob("run/checkpoints/damaged_*"))
        if seen and not aside:
            return "nothing was set aside"
        for each in aside:
            shutil.rmtree(each)
        found = contents(place / "run")
        step = "checkpoints/step_000001"  # the run that goes on from step 2 keeps the latest two
        return first_difference(whole, {k: v for k, v in found.items() if not k.startswith(step)})

    def latest(place: Path) -> bool:
        last = checkpoints(place / "run" / "checkpoints")[-1]
        return changed_since(last, needed) is not None

    def evaluating(model: str) -> tuple[Callable[[Path], bool], Callable[[Path, bool], str | None]]:
        command = [model if word == "run" else word for word in EVALUATE]
        judge = refused(*command)
        return (lambda place: raises(lambda: find_target(str(place / model)))), judge

    exports, swaps = folders.new(run_one), folders.new(run_two)
    for place in (exports, swaps):
        for to in ("adapter", "merged-16bit"):
            at = [word if word != "out" else f"to-{to}" for word in EXPORT]
            assert (done := run(*at, "--to", to, cwd=place)).returncode == 0, done.stderr
    queue = folders.new()
    assert (done := run(*REPRODUCE, cwd=queue)).returncode == 0, done.stdout + done.stderr
    state = read_queue(queue / "out")

    def queue_seen(place: Path) -> bool:
        return raises(lambda: read_queue(place / "out"))

    def queue_refused(place: Path, seen: bool) -> str | None:
        if not seen:
            found = read_queue(place / "out")
            return None if found is not None and found.tasks == state.tasks and found.pairs == state.pairs else "unseen"
        return one_message(run(*REPRODUCE, cwd=place))

    made = [
        Place(
            "checkpoint",
            0.4,
            run_one,
            "run/checkpoints/step_000003",
            run_one / "run/checkpoints/step_000002",
            latest,
            resumed,
        ),
        Place("adapter", 0.3, run_one, "run/adapter", run_two / "run/adapter", *evaluating("run")),
        Place("exported adapter", 0.1, exports, "to-adapter", swaps / "to-adapter", *evaluating("to-adapter")),
        Place(
            "merged export", 0.1, exports, "to-merged-16bit", swaps / "to-merged-16bit", *evaluating("to-merged-16bit")
        ),
        Place("queue", 0.1, queue, "out/queue.json", swaps, queue_seen, queue_refused),
    ]
    for place in made[1:4]:  # what the command gives undamaged
        undisturbed = folders.new(place.begin)
        assert (done := run(*place_command(place), cwd=undisturbed)).returncode == 0, done.stderr
        place.judge.whole = contents(undisturbed / "out")
    return made


def place_command(place: Place) -> list[str]:
    """Evaluate, of what the place's folder holds."""
    model = "run" if place.folder == "run/adapter" else place.folder
    return [model if word == "run" else word for word in EVALUATE]


def main() -> int:
    """The command line."""
    args = trials.parser(__doc__.splitlines()[0], 500, 40).parse_args()
    tries, rng = args.short or args.tries, random.Random(args.seed)
    tally = Tally("flips", bool(args.short), "one flipped bit, truncation or swap in checkpoint, adapter, reference, exports, queue")  # fmt: skip
    counts = {"seen": 0, "changed nothing": 0, "by the whole command": 0}
    with Folders() as folders:
        for place in places(folders):
            for i in range(max(4, round(tries * place.share))):
                folder = folders.new(place.begin)
                target = folder / place.folder
                files = [target] if target.is_file() else sorted(f for f in target.iterdir() if f.is_file())
                what = DAMAGES[i % len(DAMAGES)](files[rng.randrange(len(files))], place.other, rng)
                seen = place.seen(folder)
                fault = None
                if not seen or i % WHOLE_EVERY == 0:
                    counts["by the whole command"] += 1
                    fault = place.judge(folder, seen)
                counts["seen" if seen else "changed nothing"] += fault is None
                tally.tell(fault, f"{place.name}: {what}")
                shutil.rmtree(folder)
        tally.more = counts
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
