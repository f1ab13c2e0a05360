"""Qwen3's true shapes, once, on the CPU: a random-weight 0.6B student and 4B NF4 teacher take a few real steps.

    python benchmarks/qwen_shapes_cpu.py

Nothing is downloaded: the weights are random (so nothing is learnt), the shapes, dtypes and code path are those of
`--config qwen3-0.6b-4b`, with 4 rollouts of 16 new tokens. The bundled tokenizer stands in: the ids above it are padded
rows. Needs 12 GiB of memory (while the teacher is quantised), 9 GB of
disk and five minutes. Prints seconds and memory as JSON.
"""

import argparse
import json
import resource
import shutil
import tempfile
from pathlib import Path

# hidden, layers, query heads, key-value heads, mlp, tied head: as in the published config.json files
SHAPES = {"student": (1024, 28, 16, 8, 3072, True), "teacher": (2560, 36, 32, 8, 9728, True)}


def gib() -> float:
    """Returns this process's peak memory, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_model(role: str, folder: Path) -> int:
    """Writes a random bfloat16 Qwen3 of the true shape beside the bundled tokenizer; returns its parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from poweropd_lite.models.loading import model_path

    hidden, layers, heads, kv_heads, mlp, tied = SHAPES[role]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=128,
            intermediate_size=mlp,
            tie_word_embeddings=tied,
            max_position_embeddings=40_960,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    bundled = Path(model_path("bundled", role))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(bundled / name, folder / name)
    return model.num_parameters()


def main() -> None:
    """Makes both models in a temporary folder, trains, reports, and removes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=16)
    args = parser.parse_args()
    from multiprocessing import get_context

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with get_context("spawn").Pool(1) as pool:  # in a process of its own, so that its memory is not counted
            sizes = {role: pool.apply(make_model, (role, folder / role)) for role in SHAPES}

        from poweropd_lite.base.config import load_config
        from poweropd_lite.train import train

        config = load_config(
            "qwen3-0.6b-4b",
            student=str(folder / "student"),
            teacher=str(folder / "teacher"),
            reward="log_ratio",  # p^10 of a random model is 0, and so would be the gradient
            data="bundled",
            eval_benchmarks="bundled",
            eval_problems=2,
            eval_samples=1,
            eval_max_new_tokens=4,
            eval_every=0,
            dtype="bfloat16",
            steps=args.steps,
            batch_size=args.rollouts,
            max_new_tokens=args.new_tokens,
            max_prompt_tokens=128,
            token_budget=512,
            output=str(folder / "run"),
        )
        results = train(config)
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        report = {
            "parameters": sizes,
            "seconds": results.summary["seconds"],
            "peak_gib": round(gib(), 2),
            "tokens_in_loss": [line["tokens/loss"] for line in steps],
            "grad_norm": [line["optim/grad_norm"] for line in steps],
            "entropy": [line["entropy"] for line in steps],
        }
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
