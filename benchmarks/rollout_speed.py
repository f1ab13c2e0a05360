"""Rollout speed, side by side in one run: transformers' generate, the built-in loop, and vLLM where it is installed.

    python benchmarks/rollout_speed.py

Two students with a LoRA adapter, in float32 on this machine's CPU (or on the card, if there is one): the bundled pair's, on
its own problems, and a 41.6 M Qwen3 with random weights whose completions end after 40 tokens on average (128 at most):
uneven lengths, as reasoning has them. 32 prompts, plain sampling at temperature 1. Every engine is warmed up, then timed:
CPU seconds of the process, but for vLLM, which has others, and on a card. Useful tokens are those up to each row's own end.
Each engine runs in a process of its own, since vLLM changes how torch uses threads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from poweropd_lite.base.config import Config, load_config

MODELS = ("bundled", "41.6 M")
ENGINES = ("generate", "loop", "vllm")
PROMPTS, REPEATS = 32, 3


def make_model(folder: Path) -> None:
    """Writes a random Qwen3 of 41.6 M weights beside the bundled tokenizer."""
    import shutil

    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from poweropd_lite.models.loading import model_path

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=32_000,
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            intermediate_size=1536,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
        )
    )
    assert round(model.num_parameters() / 1e6, 1) == 41.6, model.num_parameters()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(Path(model_path("bundled", "student")) / name, folder / name)


def case(model: str, folder: Path) -> tuple[Config, list[tuple[int, ...]], frozenset[int], int]:
    """Returns config, prompts, stop ids and the longest completion of one of MODELS."""
    from poweropd_lite.checks.pair import load_pair
    from poweropd_lite.problems.reading import load_prompts

    config = load_config("bundled", loader="peft", engine="loop")
    pair = load_pair(config)
    prompts = [p.ids for p in load_prompts(config, pair.tokenizer)[0][:PROMPTS]]
    if model == "bundled":
        return config, prompts, pair.stop_ids, config.max_new_tokens
    # Random weights choose among 32,000 ids almost evenly, so 800 stop ids end a completion at any token with 1 in 40.
    config = load_config("bundled", loader="peft", engine="loop", student=str(folder), max_new_tokens=128)
    return config, prompts, frozenset(range(31_200, 32_000)), 128


def measure(engine: str, model: str, folder: Path) -> None:
    """Times one engine in this process and prints a JSON line."""
    import torch

    from poweropd_lite.checks.machine import compute_dtype
    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.method.rollout import TRAINING, Draws
    from poweropd_lite.models.student import load_student

    config, prompts, stops, longest = case(model, folder)
    torch.set_num_threads(config.threads or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_student(config, device, compute_dtype(config.dtype, device))
    with torch.no_grad():  # an adapter that does something
        torch.manual_seed(0)
        for p in student.trainable().values():
            p.add_(torch.randn_like(p), alpha=0.002)
    clock = time.perf_counter if engine == "vllm" or device.type == "cuda" else time.process_time
    sampler = make_sampler(engine, student, config, stops)
    seconds, lengths = [], []
    for repeat in range(REPEATS + 1):  # the first one warms up
        started = clock()
        done = sampler(prompts, Draws(0, TRAINING, repeat, tuple(range(PROMPTS))), Sampling(), longest)
        if repeat:
            seconds.append(clock() - started)
            lengths.append([len(ids) for ids in done])
    total = sum(map(sum, lengths))
    line = {"seconds": sum(seconds), "tokens": total, "padded": sum(PROMPTS * max(n) for n in lengths)}
    print("RESULT " + json.dumps(line))


def make_sampler(engine: str, student, config: Config, stops: frozenset[int]):
    """Returns a function of (prompts, draws, sampling, longest) that gives completion ids."""
    import torch

    if engine == "generate":
        model = student.model.eval()

        def generate(prompts, draws, sampling, longest):
            torch.manual_seed(draws.step)
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=student.device)
            seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=student.device)
            with torch.no_grad(), student.compute():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=seen,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=longest,
                    eos_token_id=sorted(stops),
                    pad_token_id=0,
                )
            rows = [row[width:].tolist() for row in out]
            ends = [next((i + 1 for i, t in enumerate(row) if t in stops), len(row)) for row in rows]
            return [row[:end] for row, end in zip(rows, ends, strict=True)]

        return generate
    if engine == "loop":
        from poweropd_lite.engines.loop import LoopEngine

        built = LoopEngine(student, stops, say=print)
    else:
        from poweropd_lite.engines.vllm import VllmEngine
        from poweropd_lite.models.shape import served_run

        built = VllmEngine(student, served_run(config), stops)

    def sample(prompts, draws, sampling, longest):
        built.sync()  # as in every step of training
        return [r.completion_ids for r in built.sample(prompts, draws, sampling, longest)]

    return sample


def main() -> None:
    """Runs every engine on every model and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        measure(args.engine, args.model, args.folder)
        return
    import importlib.util

    engines = [e for e in ENGINES if e != "vllm" or importlib.util.find_spec("vllm")]
    print("| model | engine | seconds | useful tokens/s | x generate | useful share |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        make_model(Path(temporary))
        for model in MODELS:
            base = None
            for engine in engines:
                flags = ["--engine", engine, "--model", model, "--folder", temporary]
                done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
                r = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))[7:])
                speed = r["tokens"] / r["seconds"]
                base = base or speed
                print(
                    f"| {model} | {engine} | {r['seconds'] / REPEATS:.2f} | {speed:,.0f} | {speed / base:.2f} | "
                    f"{r['tokens'] / r['padded']:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
