"""Where a token's time goes in vLLM: the same rollouts with each of its extras switched off, and with none, in turns.

What training asks of it: the adapter, a seed a request, biases that keep ids which no token has from being sampled, and the
log-prob of every token. A round runs every case once, each time in another order; a ratio is to the same round's case with
all of them. On a card by the clock, 0.6B; on a CPU by CPU seconds, a small model with Qwen3's head (with `--tiny` and a head of
1,000 ids: what the host does). What starting and ending vLLM took is beside it.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from random_models import make_student
from shapes import SHAPES, prompts, sampling, settings
from steps import make_engine

from poweropd_lite.engines import vllm
from poweropd_lite.engines.choose import installed
from poweropd_lite.method.rollout import Draws

PIECES = ("adapter", "seeds", "biases", "log-probs")
CASES = {"as trained": (), **{f"without {piece}": (piece,) for piece in PIECES}, "without all four": PIECES}
CUDA = torch.cuda.is_available()
clock = time.perf_counter if CUDA else time.process_time


def generate(engine, asked: list, drawn, new: int, off: tuple[str, ...]) -> float:
    """Returns the seconds of one batch of `new` tokens a line, without what is `off`."""
    biases = None if "biases" in off else engine._biases(drawn)
    seeds = Draws(0, 0, 0, tuple(range(len(asked)))).request_seeds()
    params = [engine._params(drawn, new, biases, seed) for seed in seeds]
    for each in params:
        each.stop_token_ids = []
        if "seeds" in off:
            each.seed = None
        if "log-probs" in off:
            each.logprobs = None
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in asked]
    request = None if "adapter" in off else engine.request
    started = clock()
    done = engine.llm.generate(inputs, sampling_params=params, use_tqdm=False, lora_request=request)
    took = clock() - started
    assert all(len(out.outputs[0].token_ids) == new for out in done)
    return took


def measure(tiny: bool) -> dict:
    """Returns a row a case: milliseconds a token, and the ratio to that of all four, the median and the extremes of rounds."""
    name = "tiny-student" if tiny else "0.6b" if CUDA else "wide-head"
    lines, length, new, rounds = (16, 12, 32, 5) if tiny or not CUDA else (32, 128, 512, 7)
    config = settings(batch_size=lines, max_new_tokens=new, max_prompt_tokens=length)
    student = make_student(name, config, torch.bfloat16 if CUDA else torch.float32)
    asked, drawn = prompts(lines, length, SHAPES[name].vocabulary), sampling(SHAPES[name])
    vllm.GRAPHS = {}  # graphs of its own for the case without an adapter
    with tempfile.TemporaryDirectory() as folder:
        started = clock()
        engine = make_engine("vllm", student, config, Path(folder))
        start = clock() - started
        engine.sync()
        found: dict[str, list[float]] = {case: [] for case in CASES}
        for off in CASES.values():
            generate(engine, asked, drawn, new, off)  # warms up
        for i in range(rounds):
            order = list(CASES)[i % len(CASES) :] + list(CASES)[: i % len(CASES)]
            for case in order[:: 1 if i % 2 else -1]:
                found[case].append(generate(engine, asked, drawn, new, CASES[case]))
        started = clock()
        engine.close()
        end = clock() - started
    rows = []
    for case, seconds in found.items():
        ratios = [one / whole for one, whole in zip(seconds, found["as trained"], strict=True)]
        median = statistics.median(seconds) / new * 1000
        spread = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        rows.append({"case": case, "ms a token": median, **spread})
    versions = {name: installed(name) for name in ("vllm", "torch", "transformers", "peft")}
    shape = {"model": name, "lines": lines, "new tokens": new, "rounds": rounds, "clock": clock.__name__}
    return {"rows": rows, "seconds_to_start": start, "seconds_to_end": end, **shape, "versions": versions}
