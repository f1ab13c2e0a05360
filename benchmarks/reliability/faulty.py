"""Trains in a process in which one call of one phase goes wrong: `faulty.py PLAN FLAGS...`, flags being train's.

PLAN is JSON: `phase`, a name of PHASES; `call`, which of its calls (from 0); `times`, how many from that one on; `fault`:

memory     out of memory, as torch says it        driver   memory of the card that is broken, after which it does nothing more
short      the engine gives one completion less   cut      a completion of the engine lacks its last token
nan, inf, huge   one row of what the phase returns (of the gradient, for backward) holds NaN, infinity, 1e30
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.cli import run_command
from poweropd_lite.engines import guard, refill
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.run import handover
from poweropd_lite.run.checkpoint import Checkpoints
from poweropd_lite.train import __main__ as command
from poweropd_lite.train import loop, start

PHASES: dict[str, tuple[Any, str]] = {
    "load": (start, "load_session"),
    "sync": (LoopEngine, "sync"),
    "sample": (LoopEngine, "_sample"),
    "stream": (refill, "decode"),
    "engine": (LoopEngine, "sample"),
    "teacher": (Teacher, "hidden"),
    "student": (Student, "hidden"),
    "backward": (torch.Tensor, "backward"),
    "guard": (guard.Guard, "check"),
    "optimizer": (loop, "take_step"),
    "evaluate": (loop, "evaluate_student"),
    "save": (Checkpoints, "save"),
    "hand over": (handover, "what_it_says"),
}
VALUES = {"nan": torch.nan, "inf": torch.inf, "huge": 1e30}


def raised(fault: str) -> None:
    """Raises what the fault raises, if it does."""
    if fault == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if fault == "driver":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ...")


def spoilt(fault: str, found: Any) -> Any:
    """Returns what a phase gives when it goes wrong."""
    if fault == "short":
        return found[:-1]
    if fault == "cut":
        row = max(range(len(found)), key=lambda i: found[i].finish == "length")
        first = found[row]
        worse = replace(first, completion_ids=first.completion_ids[:-1], logprobs=first.logprobs[:-1], finish="length")
        return [*found[:row], worse, *found[row + 1 :]]
    found = found.clone()
    found[-1] = VALUES[fault]
    return found


def plant(phase: str, fault: str, call: int = 0, times: int = 1) -> None:
    """Puts the fault in its place."""
    owner, name = PHASES[phase]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def faulty(*args: Any, **options: Any) -> Any:
        nonlocal calls
        number, calls = calls, calls + 1
        if not call <= number < call + times:
            return real(*args, **options)
        raised(fault)
        found = real(*args, **options)
        if phase != "backward":
            return spoilt(fault, found)
        # The tensors that the loss hangs on are not known here; the optimizer's gradients are, at the next step.
        stepped = loop.take_step

        def take(student: Any, *rest: Any) -> Any:
            next(p for p in student.trainable().values() if p.grad is not None).grad.view(-1)[-1] = VALUES[fault]
            loop.take_step = stepped
            return stepped(student, *rest)

        loop.take_step = take
        return found

    setattr(owner, name, faulty)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    plant(**json.loads(sys.argv[1]))
    run_command(lambda: command.main(sys.argv[2:]))
