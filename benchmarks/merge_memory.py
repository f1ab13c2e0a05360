"""Memory and time of a merge in Qwen3-0.6B's true shapes (random weights, bfloat16): export against PEFT's merge_and_unload.

    python benchmarks/merge_memory.py

Both sides load the same base and the same rank-32 adapter and write a bfloat16 model, each in a process of its own; the
peak is counted above what the process holds after its imports. Export's side includes its proof: the live model asked, the
written model read back, loaded and asked. Without a GPU, a hub or a download; 6 GB of disk for a while.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "tie_word_embeddings": True, "rope_theta": 1000000.0, "eos_token_id": 474,
}  # fmt: skip
FORMATS = ("merged-16bit", "gguf", "merged-4bit")


def make(folder: Path) -> int:
    """Writes a base with random weights and an adapter on it; returns the base's bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from poweropd_lite.models.loading import model_path

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPES)).to(torch.bfloat16)
    size = sum(p.numel() * 2 for p in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled", "student"))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    live = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    live.save_pretrained(folder / "adapter")
    return size


def run_side(side: str, folder: Path) -> dict:
    """Does one side in this process; returns its peak above the imports, bytes, and its seconds."""
    import bitsandbytes  # noqa: F401
    import gguf  # noqa: F401
    import peft
    import torch
    import transformers

    from poweropd_lite.export import card, export, folders, proof, push, source  # noqa: F401
    from poweropd_lite.export.settings import load_export_config

    transformers.AutoModelForCausalLM, transformers.Qwen3ForCausalLM, transformers.BitsAndBytesConfig  # noqa: B018
    before, started = memory("VmRSS"), time.monotonic()
    if side == "peft":
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
        merged.save_pretrained(folder / "peft")
    else:
        kind = {"gguf_type": "q8_0"} if side == "gguf" else {}
        export(
            load_export_config(
                model=folder / "adapter", base=str(folder / "base"), to=side, output=folder / side, **kind
            )
        )
    return {"peak": memory("VmHWM") - before, "seconds": time.monotonic() - started}


def memory(key: str) -> int:
    """Returns a line of /proc/self/status in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Runs both sides and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="merged-16bit", help=f"joined by commas: {', '.join(FORMATS)}")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print("RESULT " + json.dumps(run_side(args.side, args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder)
        print(f"Qwen3-0.6B, {size / 2**30:.2f} GiB in bfloat16")
        for side in ["peft", *args.formats.split(",")]:
            command = [sys.executable, __file__, "--side", side, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            found = json.loads(done.stdout.split("RESULT ")[1])
            peak, seconds = found["peak"], found["seconds"]
            print(
                f"{side:14} peak {peak / 2**30:5.2f} GiB above imports = {peak / size:4.2f}x the model, {seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
