"""docs/models.md's columns of other programs: four families sampled by the real vLLM, six read by the real llama.cpp.

All families: `python benchmarks/models.py`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import run_python

HERE = Path(__file__).parent
# llama.cpp's converter, which install.sh puts beside the environment's packages
CHECKOUT = Path(os.environ.get("LLAMA_CPP", Path(sys.prefix) / "llama.cpp"))


def found(script: str, *args: str, cwd: Path, imported: str | None) -> dict:
    """Runs a script of this folder and returns what it found."""
    done = run_python(str(HERE / script), *args, cwd=cwd, imported=imported)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))[7:])


# What a CPU's vLLM 0.32 lacks and a run refuses; the script mends it and goes on.
LACKS = {"qwen3_moe": "select_unquantized_moe_backend", "qwen3_5_text": "torchvision"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "qwen3_5_text"])
def test_vllm_samples_from_the_student_and_takes_its_next_adapter(family, tmp_path):
    said = found("vllm_family.py", family, cwd=tmp_path, imported="vllm")
    if family in LACKS:
        assert LACKS[family] in said["lacks"] or "bfloat16 alone" in said["lacks"]
    else:
        assert said["lacks"] is None
    # In bfloat16 two programs round otherwise: 0.014 nats measured, and an adapter is 1 nat.
    mean, largest = (0.03, 0.5) if said["dtype"] == "bfloat16" else (1e-5, 1e-3)
    assert max(said["gap"]) < mean and max(said["largest"]) < largest, said
    assert min(said["off"] + said["other"]) > 0.5, said


# Mean and largest difference, nats, of ids that the live model gives more than e^-7; llama.cpp's GELU is a table of half precision.
LIMITS = {"gemma3_text": (1e-3, 0.05)}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text"])
def test_llama_cpp_reads_a_family_s_export(family, tmp_path):
    checkout, imported = [], "peft"
    if family == "gemma3_text":  # whose converter brings a gguf package of its own
        checkout, imported = [str(CHECKOUT)], None
    said = found("gguf_family.py", family, *checkout, cwd=tmp_path, imported=imported)
    mean, largest = LIMITS.get(family, (1e-5, 1e-3))
    assert said["mean"] < mean and said["largest"] < largest and said["effect"] > 0.5, said
    assert said["same_ids"] == [True] * 4 and said["greedy"] == 1.0 and said["sure"] > 40, said
