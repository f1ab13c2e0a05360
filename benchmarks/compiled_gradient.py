"""The student's gradient in bfloat16, as written and compiled, against float32: relative errors, in Qwen3-0.6B's shapes.

    python benchmarks/compiled_gradient.py [--tokens 96]

Random weights, a LoRA adapter with some effect, three lines of `--tokens`, checkpointing on; the loss is a sum of log q
with fixed weights, so nothing but the student rounds. On a CPU it takes about two minutes and 8 GiB.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))

from random_models import make_student
from shapes import TOKENS, device, settings

from poweropd_lite.method.logprobs import Sampling, score_tokens
from poweropd_lite.models.student import Student


def gradient(student: Student, ids: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of all that is trained, float32."""
    for p in student.trainable().values():
        p.grad = None
    hidden = student.hidden(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:].flatten()
    score_tokens(hidden, student.head, targets, Sampling(), "full", lambda _, rows: parts[rows]).score.sum().backward()
    return torch.cat([p.grad.flatten().float() for p in student.trainable().values()])


def main() -> None:
    """Computes all three and prints how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=96)
    tokens = parser.parse_args().tokens
    torch.backends.cuda.matmul.allow_tf32 = False
    student = make_student("0.6b", settings(gradient_checkpointing=True, lr=1e-6), torch.bfloat16)
    exact = Student(copy.deepcopy(student.model).float(), device(), torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, TOKENS, (3, tokens + 1), generator=generator).to(device())
    parts = torch.randn(3 * tokens, generator=generator).to(device())
    wanted, written = gradient(exact, ids, parts), gradient(student, ids, parts)
    student.compile(print)
    compiled = gradient(student, ids, parts)
    for name, a, b in (
        ("as written, against float32", written, wanted),
        ("compiled, against float32", compiled, wanted),
        ("compiled, against as written", compiled, written),
    ):
        print(f"{name}: {((a - b).norm() / b.norm()).item():.4f}")


if __name__ == "__main__":
    main()
