"""Every cell of docs/models.md's table, run: `python benchmarks/models.py [FAMILY ...] [--llama-cpp DIR]`, in the engine tests' environment.

The loop and both teachers are the base tests' (tests/models/test_models_table.py); vLLM's CPU build and llama.cpp are asked by
the scripts of tests/engines, each family in a process of its own. Prints the table as the docs have it, and below it the
figures: differences of log-probs in nats. A cell that did not run says why. Ends with 1 if a cell is wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import forked

ROOT = Path(__file__).parents[1]
VLLM = ["vllm", "vllm.lora.request", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", *forked.LIBRARIES]
NAMES = {
    "llama": "Llama", "mistral": "Mistral, with a window", "qwen2": "Qwen2.5", "qwen3": "Qwen3", "qwen3_moe": "Qwen3-MoE",
    "qwen3_5_text": "Qwen3.5 (text)", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3 (text)", "phi3": "Phi-3",
    "smollm3": "SmolLM3", "olmo2": "OLMo 2", "granite": "Granite", "gpt_neox": "GPT-NeoX", "gpt2": "GPT-2",
}  # fmt: skip
COLUMNS = ("family", "student by the loop", "student by vLLM", "teacher, 16 bits", "teacher, 4 bits", "export to GGUF")
SECONDS = 900  # that one cell may take
OFF = {"float32": 1e-4, "bfloat16": 0.03}  # mean difference from vLLM that passes
GGUF_OFF = 1e-3


def said_by(script: str, *args: str, server: forked.Server | None) -> dict:
    """Returns what a script of the engine tests found, or {"error": its last words}."""
    command = (str(ROOT / "tests" / "engines" / script), *args)
    with tempfile.TemporaryDirectory() as folder:
        if server is not None:
            done = server.run(*command, cwd=Path(folder), timeout=SECONDS)
        else:
            done = subprocess.run(
                [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=SECONDS
            )
    said = (done.stdout + done.stderr).splitlines()
    found = [line for line in said if line.startswith("RESULT ")]
    errors = [line for line in said if "Error: " in line] or said or ["nothing was said"]
    if found:
        return json.loads(found[-1][7:])
    parts = errors[-1].split("Error: ", 1)[-1].split(" / ")  # of a traceback its words alone
    return {"error": " / ".join(x.strip() for x in parts if 'File "' not in x and "^^^" not in x and "raise " not in x)}


def base_cells(families: list[str]) -> dict[str, str]:
    """Returns of each family what stands in the cells of the loop and the teachers, which one test runs."""
    tests = [f"tests/models/test_models_table.py::test_a_family[{family}]" for family in families]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-n0", "-o", "addopts=", *tests]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    right = {test for test in tests if f"PASSED {test}" in said}
    return {f: "run" if test in right else "wrong" for f, test in zip(families, tests, strict=True)}


def vllm_cell(family: str, server: forked.Server) -> tuple[str, bool, dict]:
    """Returns the cell of vLLM, whether it is right, and the figures."""
    said = said_by("vllm_family.py", family, server=server)
    if "gap" not in said:
        why = said.get("lacks") or said["error"]
        return f"refused: {why}", "lacks" in said, said
    right = max(said["gap"]) < OFF[said["dtype"]] and min(said["off"] + said["other"]) > 10 * max(said["gap"])
    cell = "run" if said["dtype"] == "float32" else f"run in {said['dtype']}"
    cell = f"refused: {said['lacks']}; with that mended {cell}" if said["lacks"] else cell
    return cell if right else f"wrong: {said}", right, said


READ_BACK = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text")  # no fault of theirs is a refusal


def gguf_cell(family: str, checkout: Path) -> tuple[str, bool, dict]:
    """Returns the cell of GGUF, whether it is right, and the figures."""
    said = said_by("gguf_family.py", family, str(checkout), server=None)
    if "error" in said:
        return f"refused: {said['error']}", family not in READ_BACK, said
    right = said["mean"] < GGUF_OFF and said["greedy"] == 1.0
    how = "run, by llama.cpp's converter" if said["converted"] else "run"
    how += ", without its window" if family in ("mistral", "phi3") else ""
    return how if right else f"wrong: {said}", right, said


def figures(vllm: dict, gguf: dict) -> str:
    """Returns what was measured of a family, in nats."""
    parts = []
    if "gap" in vllm:
        gaps = f"{max(vllm['gap']):.0e} mean, {max(vllm['largest']):.0e} max"
        parts.append(f"vLLM {gaps} (adapter off {min(vllm['off']):.2f}, the other one {min(vllm['other']):.2f})")
    if "mean" in gguf:
        parts.append(f"llama.cpp {gguf['mean']:.0e} mean, {gguf['largest']:.0e} max")
    return "; ".join(parts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--llama-cpp", type=Path, default=Path(sys.prefix) / "llama.cpp", help="a llama.cpp checkout")
    args = parser.parse_args()
    if unknown := set(args.families) - set(NAMES):
        parser.error(f"no family named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    families = args.families or list(NAMES)
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", PYTHONPATH=str(ROOT))
    base, server = base_cells(families), forked.Server(VLLM)
    wrong, notes = "wrong" in base.values(), []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for family in families:
        by_vllm, vllm_right, vllm = vllm_cell(family, server)
        to_gguf, gguf_right, gguf = gguf_cell(family, args.llama_cpp)
        cells = (NAMES[family], base[family], by_vllm, base[family], base[family], to_gguf)
        print("| " + " | ".join(cells) + " |", flush=True)
        notes += [f"{NAMES[family]}: {said}"] if (said := figures(vllm, gguf)) else []
        wrong |= not (vllm_right and gguf_right)
    print("\n" + "\n".join(notes))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
