"""The plan's bytes beside those that are really held, on the CPU, for Qwen3's true shapes with random weights.

    python benchmarks/plan_check.py

A 0.6B LoRA student in bfloat16 with its AdamW, a 4B teacher in NF4, both made here (nothing is downloaded), and the peaks of a
micro-batch's score and update above them, by torch's profiler. Needs 11 GiB of memory and about three minutes on two cores. Prints measured,
planned and their ratio, one a line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))

import torch
from random_models import make_student, make_teacher
from shapes import SHAPES, sampling, settings

from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.method.logprobs import score_tokens
from poweropd_lite.plan.memory import plan_memory
from poweropd_lite.plan.trace import traces_of

MIB = 2**20


def main() -> None:
    """Makes the models, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024, help="of the micro-batch, in two rollouts")
    tokens = parser.parse_args().tokens
    config = settings(
        student="Qwen/Qwen3-0.6B-Base", token_budget=tokens, max_prompt_tokens=tokens // 2 - 64, max_new_tokens=64
    )
    traces = traces_of(config, torch.bfloat16)
    plan = plan_memory(config, traces, cuda=False)
    ids = torch.zeros(2, tokens // 2, dtype=torch.long)

    teacher, bits = make_teacher("4b", torch.bfloat16)
    assert bits == 4, "bitsandbytes is not installed"
    compare("teacher in NF4", held(teacher.model), plan.phases["rollout"]["teacher"])

    def score() -> None:
        target_logprobs(teacher.hidden(ids).flatten(0, 1), teacher.head, ids.flatten())

    score()
    planned = plan.phases["score"]["activations"] + plan.phases["score"]["unpacked matrix"]
    compare("a score", allocated(score), planned)
    teacher = None  # its memory goes before the student comes

    student = make_student("0.6b", config, torch.bfloat16)
    trainable = list(student.trainable().values())
    adapter = sum(4 * p.numel() for p in trainable)
    compare("student's base", held(student.model) - adapter, plan.phases["rollout"]["student"])
    compare("adapter", adapter, plan.phases["rollout"]["adapter"])

    def update() -> None:
        hidden = student.hidden(ids).flatten(0, 1)
        as_sampled = sampling(SHAPES["0.6b"])
        score_tokens(hidden, student.head, ids.flatten(), as_sampled, "sampled").score.sum().backward()

    update()
    compare("an update", allocated(update), plan.phases["update"]["activations"])
    optimizer = torch.optim.AdamW(trainable)
    optimizer.step()
    state = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
    compare("AdamW's state", state, plan.phases["rollout"]["optimizer"])


def held(model: torch.nn.Module) -> int:
    """Returns the bytes of a model's parameters and of what NF4 keeps beside them."""
    tensors = {p.data_ptr(): p for p in model.parameters()}
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            parts = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            tensors |= {(id(module), i): part for i, part in enumerate(parts)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def allocated(work) -> int:
    """Returns the most bytes that `work` had allocated at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def compare(name: str, measured: int, planned: int) -> None:
    """Prints a line."""
    print(
        f"{name:15} measured {measured / MIB:9.1f} MiB  planned {planned / MIB:9.1f} MiB  {planned / measured:6.3f}x",
        flush=True,
    )


if __name__ == "__main__":
    main()
