"""The gradients of several rewards on the same rollouts: their norms, and the angles between them.

One backward a reward and batch, by training's own `accumulate`; no optimizer, so no weight changes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import halving, machine_bytes
from poweropd_lite.base.progress import Counting
from poweropd_lite.method.rollout import LOSS, Draws, Rollout
from poweropd_lite.method.update import accumulate
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import SelfTeacher, Teacher
from poweropd_lite.rehearse.scored import objective_of
from poweropd_lite.run.session import Prepared

LEAST_SCALE = 2.0**-12  # of the loss: a gradient that overflows float16 even so is left as it is
PIECE = 1 << 24


@dataclass
class RememberingTeacher(Teacher):
    """A teacher that keeps the hidden states of a micro-batch it has seen, in the host's memory: several rewards ask for them."""

    kept: dict[bytes, Tensor] = field(default_factory=dict)

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives the final hidden states [B, T, D] of each of some right-padded ids [B, T], without gradient."""
        keys = [ids.shape[1].to_bytes(8) + ids.cpu().numpy().tobytes() for ids in several]
        new = {key: ids for key, ids in zip(keys, several, strict=True) if key not in self.kept}
        for key, states in zip(new, super().hiddens(list(new.values())), strict=True):
            self.kept[key] = states.cpu()
        return (self.kept[key].to(ids.device) for key, ids in zip(keys, several, strict=True))


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
    pace: Counting,
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Returns norms and cosines of each reward's gradient on `steps` (of which none is without tokens), and of those that
    compare whole distributions minus the divergence at each token.

    `replayed` must hold "full_kl", which the others are compared with. Gradients are of the parameters that learn, divided by
    N; twice as many of them as there are steps are held in the host's memory.
    """
    teacher, reference = RememberingTeacher(teacher.model, streamed=teacher.streamed), list[Tensor]()
    budget = ready.config.tokens_at_once
    scaler = torch.amp.GradScaler(ready.device.type, init_scale=16.0, enabled=ready.dtype == torch.float16)
    total, done, out = len(replayed) * len(steps), 0, {}
    minus: dict[str, list[Tensor]] = {}

    def gradient(name: str, step: int, rollouts: list[Rollout]) -> Tensor:
        nonlocal budget
        objective = objective_of(replayed[name], ready.objective)
        more = partial(accumulate, reference=SelfTeacher(student), draws=Draws(ready.config.seed, LOSS, step, (0, 1)))
        work = partial(more, student, teacher, rollouts, objective, scaler=scaler)
        while True:
            found, now, _ = halving(work, budget, max(map(len, rollouts)), ready.device, pace.say)
            if now != budget:  # other micro-batches from here on
                budget, teacher.kept = now, {}
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.trainable().values()]
            flat = torch.cat([grad.flatten().cpu() for grad in grads]).div_(scaler.get_scale() * found.count)
            if not scaler.is_enabled() or flat.isfinite().all() or scaler.get_scale() <= LEAST_SCALE:
                break
            scaler.update(scaler.get_scale() / 16)
        if objective.entry.pay is None:
            minus.setdefault(name, []).append(found.tokens.reward.double().cpu())
        return flat

    try:
        for name in sorted(replayed, key=lambda n: replayed[n].reward != "full_kl"):
            mine = []
            for step, rollouts in enumerate(steps):
                pace.show("gradients", done, total)
                mine.append(gradient(name, step, rollouts))
                done += 1
            reference = reference or mine
            out[name] = _angles(mine, reference)
    finally:
        for parameter in student.trainable().values():
            parameter.grad = None
    pace.show("gradients", total, total)
    return {name: out[name] for name in replayed}, {name: torch.cat(parts) for name, parts in minus.items()}


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
