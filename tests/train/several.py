"""A step taken by several processes and alone, in float64, for every reward and for what is asked of a whole step.

Run by test_ranks.py, once a rank; the first prints as JSON how far gradient and tokens are apart.
"""

import copy
import dataclasses
import json
import sys

import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.base.memory import halving
from poweropd_lite.base.ranks import ALONE, FailedElsewhere, joined
from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import LOSS, TRAINING, Draws, Rollout
from poweropd_lite.method.update import Objective, accumulate
from poweropd_lite.models.student import Student, load_student
from poweropd_lite.models.teacher import SelfTeacher, load_teacher
from poweropd_lite.rewards.part import Part
from poweropd_lite.rewards.table import REWARDS

CPU, STOP = torch.device("cpu"), 7
PARTS = {
    "dial": Part(keep="dial", keep_over="step"),
    "entropy": Part(keep="entropy", keep_over="step"),
    "abs": Part(keep="abs", keep_over="completion"),
    "random": Part(keep="random", keep_over="step"),
    "remaining": Part(weight="remaining"),
    "horizon": Part(weight="horizon", horizon=7),
}


def rollouts_of(student):
    """Seven rollouts; the last two have no token in the loss, so that of three processes the last has none."""
    engine = LoopEngine(student, frozenset({STOP}), print)
    engine.sync()
    prompts = [tuple(range(20 + i, 30 + 2 * i)) for i in range(5)]
    drawn = engine.sample(prompts, Draws(0, TRAINING, 0, tuple(range(5))), Sampling(), 12)
    engine.release()
    return [*drawn, *(Rollout((30, 31), (STOP,), (0.0,), "stop") for _ in range(2))]


def models():
    """Returns rollouts of a student with an adapter that does something, the student in float64, and a float64 teacher."""
    made = load_student(load_config("bundled"), CPU, torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.trainable().items():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05, generator=generator)
    teacher = load_teacher("bundled", 16, CPU, torch.float32)
    teacher.model.double()
    return rollouts_of(made), Student(copy.deepcopy(made.model).double(), CPU, torch.float64), teacher


def step(student, teacher, rollouts, objective, ranks, budget=60):
    """Returns gradient [all], tokens [8, N] and the loss."""
    reference = SelfTeacher(student) if "log_ref" in objective.entry.needs else None
    more = (None, None, reference, Draws(3, LOSS, 5, (0, 1)), ranks)
    found = accumulate(student, teacher, rollouts, objective, budget, *more)
    gradient = torch.cat([p.grad.flatten() for p in student.trainable().values()])
    return gradient, torch.stack([getattr(found.tokens, f.name) for f in dataclasses.fields(found.tokens)]), found.loss


def furthest(ours, wanted):
    """Returns the larger difference of gradient and tokens, by the size of what is wanted; the loss is in float32."""
    assert torch.allclose(ours[2], wanted[2], rtol=1e-6) and torch.equal(ours[1].isnan(), wanted[1].isnan())
    pairs = zip(ours[:2], wanted[:2], strict=True)
    return max(((a - b).nan_to_num(0.0).norm() / b.nan_to_num(0.0).norm()).item() for a, b in pairs)


def main():
    """Compares them all."""
    with joined(print) as ranks:
        (rollouts, student, teacher), apart = models(), dict[str, float]()
        cases = {name: Objective(name, reward_settings(load_config("bundled", reward=name))) for name in REWARDS}
        power = {"alpha": 10.0}
        cases |= {f"power, {name}": Objective("power", power, part=part) for name, part in PARTS.items()}
        cases["power, own mean"] = Objective("power", power, baseline="own")
        cases["zscore, entropy"] = Objective("zscore", part=PARTS["entropy"])
        cases["power, raw"] = Objective("power", power, stops=Stops("raw"))
        for name, objective in cases.items():
            together = step(student, teacher, rollouts, objective, ranks)
            if not ranks.rank:
                apart[name] = furthest(together, step(student, teacher, rollouts, objective, ALONE))

        # One of them runs out of memory with the first budget: all try again with half of it.
        tried, own = [], student.hidden
        objective = cases["zscore"]

        def attempt(budget):
            tried.append(budget)

            def hidden(ids):
                if ranks.rank == 1 and len(tried) == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return own(ids)

            student.hidden = hidden
            with ranks.failing_together():
                return step(student, teacher, rollouts, objective, ranks, budget)

        together, _, halved = halving(attempt, 120, 40, CPU, print)
        assert tried == [120, 60] and halved == 1
        # One can't go on: the others are told so, and wait for nothing.
        ended = None
        student.hidden = own
        try:
            with ranks.failing_together():
                if ranks.rank == 1:
                    raise ValueError("no teacher")
                step(student, teacher, rollouts, objective, ranks)
        except (ValueError, FailedElsewhere) as error:
            ended = type(error)
        assert ended is (ValueError if ranks.rank == 1 else FailedElsewhere)

        if not ranks.rank:
            alone = step(student, teacher, rollouts, objective, ALONE)
            apart["zscore, out of memory"] = furthest(together, alone)
            print(json.dumps(apart))


if __name__ == "__main__":
    sys.exit(main())
