"""Measures the bundled teacher and student on held-out problems: `python -m poweropd_lite.tiny.measure`."""

import sys

from poweropd_lite.config import load_config
from poweropd_lite.data import evaluation_source, load_prompts
from poweropd_lite.evaluate import Evaluation, evaluate
from poweropd_lite.models import load_causal_lm
from poweropd_lite.pair import load_pair


def measure(role: str, problems: int = 256, samples: int = 8) -> Evaluation:
    """Returns the evaluation of the shipped "teacher" or "student", in float32, on the first held-out problems."""
    import torch

    from poweropd_lite.engine_loop import LoopEngine
    from poweropd_lite.student import Student

    config = load_config("bundled", eval_problems=problems, eval_samples=samples)
    pair = load_pair(config)
    held_out, _ = load_prompts(evaluation_source(config), pair.tokenizer, config, problems)
    model = load_causal_lm("bundled", role, config, torch.float32).eval()
    cpu = torch.device("cpu")
    engine = LoopEngine(Student(model, cpu, torch.float32), pair.stop_ids, say=print)
    engine.sync()
    result, _ = evaluate(engine, held_out, pair, config, cpu)
    return result


def main() -> int:
    """Prints a row of docs/bundled_pair.md for each of the two."""
    for role in ("teacher", "student"):
        e = measure(role)
        shares = " | ".join(f"{100 * x:.1f}%" for x in (e.greedy, e.avg, e.any, e.stop_share, e.boxed_share))
        print(f"| {role} | {shares} | {e.length:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
