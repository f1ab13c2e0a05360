"""Measures the bundled teacher and student on held-out problems: `python -m poweropd_lite.tiny.measure`."""

import sys

import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.evaluate.sampling import evaluate_student
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.student import Student
from poweropd_lite.problems.benchmarks import find_benchmarks, load_problems


def measure(role: str, problems: int = 256, samples: int = 8) -> dict[str, float]:
    """Returns the scores of the shipped "teacher" or "student", in float32, on the first held-out problems."""
    config = load_config("bundled", eval_problems=problems, eval_samples=samples)
    pair = load_pair(config)
    (benchmark,) = find_benchmarks("bundled")
    held_out = load_problems(benchmark, pair.tokenizer, config, problems, (None, None), print)
    model = load_causal_lm("bundled", role, torch.float32, config.trust_remote_code).eval()
    cpu = torch.device("cpu")
    engine = LoopEngine(Student(model, cpu, torch.float32), pair.stop_ids, say=print)
    engine.sync()
    done = evaluate_student(engine, [held_out], pair, config, cpu)
    assert done is not None, "nothing asked it to end"
    return done[0].summary()


def main() -> int:
    """Prints a row of docs/bundled_pair.md for each of the two."""
    for role in ("teacher", "student"):
        e = measure(role)
        shares = " | ".join(f"{100 * e[x]:.1f}%" for x in ("greedy", "avg", "any", "stop_share", "answer_share"))
        print(f"| {role} | {shares} | {e['length']:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
