"""One method's step measured in this process, and how far the methods' gradients are apart."""

import gc
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import peers_trl
import torch
from cases import TINY, Case, case_of, gradient_of, make_models, rollouts_of
from loops import Lean, Ours, OursForbidden, Plain

LOOPS = {"ours": Ours, "forbidden": OursForbidden, "plain": Plain, "lean": Lean}
MIB = 2**20


class Meter:
    """Seconds of the last step (a CPU's of this process; a card's by the clock) and the peak over what stood before any."""

    def __init__(self) -> None:
        gc.collect()
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.loaded = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the largest size so far begins anew
            self.loaded = _status("VmRSS")

    def start(self) -> None:
        """Begins a step."""
        if self.cuda:
            torch.cuda.synchronize()
        self.began = self._now()

    def end(self) -> None:
        """Ends it."""
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = self._now() - self.began

    def _now(self) -> float:
        return time.perf_counter() if self.cuda else time.process_time()

    def peak_mib(self) -> float:
        """Returns the peak since the meter was made."""
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        return (peak - self.loaded) / MIB


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def on_card(asked: bool, tiny: bool) -> bool:
    """Whether shapes are a card's."""
    return asked or (torch.cuda.is_available() and not tiny)


def step(loop: str, full: bool, reward: str, work: str, tiny: bool, card: bool, steps: int = 2) -> dict:
    """Returns seconds, peak and loss of the last of some steps."""
    torch.set_num_threads(1)
    case = case_of(work, tiny, card)
    student, teacher = make_models(case, not full)
    if loop in ("trl", "gkd"):
        meters: list[Meter] = []  # made at the first step: what imports and the trainer's start take is not the step's

        def start() -> None:
            if not meters:
                meters.append(Meter())
            meters[0].start()

        value, _ = peers_trl.run(loop, case, student, teacher, steps, start, lambda: meters[0].end())
        (meter,) = meters
    else:
        method, meter = LOOPS[loop](case, student, teacher, reward), Meter()
        for _ in range(steps):
            meter.start()
            value = method.step(method.sample() if case.samples else rollouts_of(case))
            meter.end()
    return {"seconds": round(meter.seconds, 4), "peak_mib": round(meter.peak_mib(), 1), "loss": value}


def apart(methods: dict[str, tuple[str, bool, str]]) -> dict[str, float]:
    """Returns how far each method's gradient is from plain's, relative, in small shapes and float32, on the same rollouts."""
    torch.set_num_threads(1)
    case, found = TINY["scoring"], {}
    for name, (loop, full, reward) in methods.items():
        if loop == "forbidden":
            continue  # another distribution
        wanted, ours = (_gradient(which, case, full, reward) for which in ("plain", loop))
        found[name] = max(((ours[1] - wanted[1]).norm() / wanted[1].norm()).item(), abs(ours[0] / wanted[0] - 1))
    return found


def _gradient(loop: str, case: Case, full: bool, reward: str) -> tuple[float, torch.Tensor]:
    student, teacher = make_models(case, not full)
    if loop in ("trl", "gkd"):
        value, gradient = peers_trl.run(loop, case, student, teacher, 1, _nothing, _nothing, clip=1e9, keep=True)
        assert gradient is not None
        return value, gradient
    value = LOOPS[loop](case, student, teacher, reward).gradient(rollouts_of(case))
    return value, gradient_of(student)


def _nothing() -> None:
    pass


def machine() -> dict:
    """Returns the class of machine."""
    cuda, info = torch.cuda.is_available(), Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    words = re.sub(r"\([RTM]+\)", "", names[0]).split() if names else ["CPU"]
    kind = f"{' '.join(words[:2])}, {torch.backends.cpu.get_cpu_capability()}, {len(names)} cores"
    return {"device": torch.cuda.get_device_name() if cuda else f"CPU ({kind}), one thread", "cuda": cuda}


def versions() -> dict[str, str | None]:
    """Returns the versions of what computes."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
