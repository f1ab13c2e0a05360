"""What a decoded token costs: 0.6B + LoRA 32 in the built-in loop, prompts of 128, mean over 1,024 new tokens."""

import time
from collections import Counter

import torch
from random_models import make_student
from shapes import SHAPES, prompts, sampling, settings

from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.models.student import Student

NEVER = frozenset({7})


def timed(
    student: Student,
    count: int,
    length: int,
    new: int,
    drawn: Sampling,
    stops: frozenset[int] = NEVER,
    most: int | None = None,
) -> tuple[float, list[Rollout]]:
    """Returns seconds and rollouts of `count` prompts of `length`, sync and release included: of one batch, or as evaluate
    takes them, at most `most` at once and a prompt where one has ended.
    """
    engine = LoopEngine(student, stops, print)
    asked = prompts(count, length, len(student.head.weight))
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    started = time.perf_counter()
    engine.sync()
    draws = Draws(0, 0, 0, tuple(range(count)))
    if most is None:
        rollouts = engine.sample(asked, draws, drawn, new)
    else:
        rollouts = [r for told in engine.stream(asked, draws, drawn, new, most) for _, r in told.rollouts]
    engine.release()
    finish()
    return time.perf_counter() - started, rollouts


def ending(rollouts: list[Rollout], after: int) -> frozenset[int]:
    """Returns ids that end every second line about `after` tokens on, and no other one, if the same draws are made again."""
    often = Counter(i for r in rollouts for i in r.completion_ids)
    once = [[i for i in r.completion_ids[after:] if often[i] == 1][:1] for r in rollouts[::2]]
    return frozenset(i for ids in once for i in ids)


def measure(tiny: bool) -> dict:
    """Returns a row a batch: milliseconds a token of the longest line, and tokens of all lines by second."""
    name, wide, narrow, length, new, after = (
        ("tiny-student", 4, 2, 12, 24, 4) if tiny else ("0.6b", 32, 8, 128, 1024, 32)
    )
    student, drawn = make_student(name, settings(), torch.bfloat16), sampling(SHAPES[name])
    timed(student, wide, length, new // 8, drawn)
    rows = []
    whole, full = timed(student, wide, length, new, drawn)
    rows.append(_row(f"{wide}", whole, full))
    rows.append(_row(f"{wide}, half end near {after}", *timed(student, wide, length, new, drawn, ending(full, after))))
    rows.append(_row(f"{narrow}", *timed(student, narrow, length, new, drawn)))
    return {"rows": rows}


def _row(batch: str, seconds: float, rollouts: list[Rollout]) -> dict:
    tokens, longest = sum(len(r.completion_ids) for r in rollouts), max(len(r.completion_ids) for r in rollouts)
    ended = sum(r.finish == "stop" for r in rollouts)
    return {"batch": batch, "ended": ended, "ms a token": 1000 * seconds / longest, "tokens/s": tokens / seconds}
