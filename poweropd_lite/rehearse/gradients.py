"""The gradients of several rewards on the same rollouts: their norms, and the angles between them.

One backward a reward and batch, by training's own `accumulate`; no optimizer, so no weight changes.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import halving, machine_bytes
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import accumulate
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.rehearse.scored import Pace
from poweropd_lite.run.session import Prepared, reward_settings

LEAST_SCALE = 2.0**-12  # of the loss: a gradient that overflows float16 even so is left as it is
PIECE = 1 << 24


@dataclass
class RememberingTeacher(Teacher):
    """A teacher that keeps the hidden states of a micro-batch it has seen, in the host's memory: several rewards ask for them."""

    kept: dict[bytes, Tensor] = field(default_factory=dict)

    def hidden(self, ids: Tensor) -> Tensor:
        """Returns the final hidden states [B, T, D] of right-padded ids [B, T], without gradient."""
        key = ids.shape[1].to_bytes(8) + ids.cpu().numpy().tobytes()
        if key not in self.kept:
            self.kept[key] = super().hidden(ids).cpu()
        return self.kept[key].to(ids.device)


def check_room(student: Student, steps: int) -> None:
    """Raises UserError if the gradients of `steps` batches, held twice in float32, would take over half of the host's memory."""
    trained = sum(p.numel() for p in student.trainable().values())
    wanted, there = 2 * steps * 4 * trained, machine_bytes() // 2
    if wanted > there:
        raise UserError(
            f"{steps} gradients of {trained:,} parameters, held twice to compare them, take {wanted / 2**30:.1f} GiB of the host's "
            f"memory, half of which is {there / 2**30:.1f}; type {'--gradient-steps 2, or ' * (steps > 2)}--no-full-finetune "
            "with a --lora-rank that is small"
        )


def compare_gradients(
    ready: Prepared,
    student: Student,
    teacher: Teacher,
    steps: list[list[Rollout]],
    replayed: dict[str, Config],
    pace: Pace,
) -> tuple[dict[str, dict[str, Any]], Tensor]:
    """Returns norms and cosines of each reward's gradient on `steps` (of which none is without tokens), and -KL of the tokens.

    `replayed` must hold "full_kl", which the others are compared with. Gradients are of the parameters that learn, divided by
    N; twice as many of them as there are steps are held in the host's memory.
    """
    teacher, reference, budget = RememberingTeacher(teacher.model), list[Tensor](), ready.config.tokens_at_once
    scaler = torch.amp.GradScaler(ready.device.type, init_scale=16.0, enabled=ready.dtype == torch.float16)
    total, done, minus_kl, out = len(replayed) * len(steps), 0, [], {}

    def gradient(config: Config, rollouts: list[Rollout]) -> Tensor:
        nonlocal budget
        objective = replace(ready.objective, reward=config.reward, settings=reward_settings(config))
        work = partial(accumulate, student, teacher, rollouts, objective, scaler=scaler)
        while True:
            found, now, _ = halving(work, budget, max(map(len, rollouts)), ready.device, pace.say)
            if now != budget:  # other micro-batches from here on
                budget, teacher.kept = now, {}
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.trainable().values()]
            flat = torch.cat([grad.flatten().cpu() for grad in grads]).div_(scaler.get_scale() * found.count)
            if not scaler.is_enabled() or flat.isfinite().all() or scaler.get_scale() <= LEAST_SCALE:
                break
            scaler.update(scaler.get_scale() / 16)
        if config.reward == "full_kl":
            minus_kl.append(found.tokens.reward.double().cpu())
        return flat

    try:
        for name in sorted(replayed, key=lambda n: n != "full_kl"):
            mine = []
            for rollouts in steps:
                pace.show("gradients", done, total)
                mine.append(gradient(replayed[name], rollouts))
                done += 1
            reference = reference or mine
            out[name] = _angles(mine, reference)
    finally:
        for parameter in student.trainable().values():
            parameter.grad = None
    pace.show("gradients", total, total)
    return {name: out[name] for name in replayed}, torch.cat(minus_kl)


def _angles(mine: list[Tensor], reference: list[Tensor]) -> dict[str, Any]:
    between = [cosine(a, b) for i, a in enumerate(mine) for b in mine[:i]]
    near = [cosine(a, b) for a, b in zip(mine, reference, strict=True)]
    return {
        "norm": [norm if (norm := _norm(g)) < math.inf else None for g in mine],
        "cosine_full_kl": _mean(near),
        "cosine_full_kl_by_batch": near,
        "cosine_between_batches": _mean(between),
    }


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Returns the cosine between two vectors, or None if one of them is 0 or not finite."""
    product = _norm(a) * _norm(b)
    if not 0 < product < math.inf:
        return None
    pieces = zip(a.split(PIECE), b.split(PIECE), strict=True)  # a float64 copy of every weight's gradient is much
    return sum((x.double() @ y.double()).item() for x, y in pieces) / product


def _norm(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
