"""How near a step's gradient in float16 is to float32's, by the loss scale; bfloat16's beside it. On a CPU, a minute.

    python benchmarks/float16_gradient.py

The bundled pair (teacher in 16 bits, or 32), an adapter that does something, 8 bundled prompts with completions of the student's
own, reward p - q. Prints the relative error of the whole gradient; "overflows": the step would be dropped, and the scale halved.
"""

import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import TRAINING, Draws
from poweropd_lite.method.update import Objective, accumulate
from poweropd_lite.models.student import Student, load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.problems.reading import load_prompts

CPU, LINES = torch.device("cpu"), 8
SCALES = (2.0**-8, 1.0, 16.0, 2.0**10, 2.0**16, 2.0**24)


def student_in(dtype: torch.dtype) -> Student:
    """Returns the bundled student with an adapter of random numbers."""
    student, generator = load_student(load_config("bundled"), CPU, dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student


def main() -> None:
    """Samples once, in float32, and prints a line a dtype and scale."""
    config = load_config("bundled")
    pair = load_pair(config)
    prompts = [prompt.ids for prompt in load_prompts(config, pair.tokenizer, LINES)[0]]
    engine = LoopEngine(student_in(torch.float32), frozenset(pair.stop_ids), print)
    engine.sync()
    rollouts = engine.sample(prompts, Draws(0, TRAINING, 0, tuple(range(LINES))), Sampling(), 64)
    exact, count = gradient(rollouts, torch.float32, 32), sum(len(r.completion_ids) for r in rollouts)
    print(f"{LINES} rollouts, {count} tokens; float32's gradient has norm {exact.norm() / count:.2g}")

    def line(name: str, found: torch.Tensor) -> None:
        error = ((found - exact).norm() / exact.norm()).item()
        print(f"{name:26} {f'{error:8.2%}' if found.isfinite().all() else 'overflows'}", flush=True)

    line("bfloat16", gradient(rollouts, torch.bfloat16, 16))
    for scale in SCALES:
        line(f"float16, loss scale {scale:g}", gradient(rollouts, torch.float16, 16, scale))


def gradient(rollouts: list, dtype: torch.dtype, bits: int, scale: float = 1.0) -> torch.Tensor:
    """Returns the step's gradient, a vector, the scale taken out again."""
    student, teacher = student_in(dtype), load_teacher("bundled", bits, CPU, dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype == torch.float16)
    accumulate(student, teacher, rollouts, Objective("power", {"alpha": 1.0}), 8192, scaler)
    return torch.cat([p.grad.flatten() for p in student.trainable().values()]) / scale


if __name__ == "__main__":
    main()
