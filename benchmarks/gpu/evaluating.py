"""How fast the built-in loop, or vLLM, answers: 0.6B with its adapter, prompts of 128, at most 512 new tokens, temperature 0.6.

Answers of one length are the best case; in the uneven one they end anywhere (mean 200 tokens, if nothing cut them), and
four times as many prompts as lines are asked: they begin where answers have ended. 256 is the most that the evaluate
command takes; with 4,096 new tokens it takes what half of the card's memory holds.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from decoding import NEVER, timed
from random_models import make_student
from safetensors.torch import load_file
from shapes import SHAPES, TOKENS, device, prompts, sampling, settings
from steps import save_base

from poweropd_lite.engines.choose import ANSWERS
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.models.student import Student


def measure(tiny: bool, engine: str = "loop") -> dict:
    """Returns a row a batch: tokens by second, prompts read and answers drawn."""
    name, length, new = ("tiny-student", 12, 16) if tiny else ("0.6b", 128, 512)
    batches = (4, 8) if tiny else (ANSWERS["cuda"], 512) if engine == "loop" else (ANSWERS["vllm"],)
    student, shape = make_student(name, settings(), torch.bfloat16), SHAPES[name]
    drawn = dataclasses.replace(sampling(shape), temperature=0.6)
    # Every 200th id ends an answer (every 8th in small shapes): random models find all about as likely.
    stops = frozenset(range(7, min(TOKENS, shape.vocabulary - 10), 8 if tiny else 200))
    cases = [("one length", batch, batch, NEVER) for batch in batches]
    cases.append(("uneven", batches[0], 4 * batches[0], stops))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = serve(student, length + new, max(batches), Path(folder)) if engine == "vllm" else None

        def answers(batch: int, count: int, new: int, ends: frozenset[int]) -> tuple[float, list[Rollout]]:
            if server is None:
                return timed(student, count, length, new, drawn, ends, batch)
            server.stop_ids, draws = sorted(ends), Draws(0, 0, 0, tuple(range(count)))
            began = time.perf_counter()
            found = server.sample(prompts(count, length, shape.vocabulary), draws, drawn, new)
            return time.perf_counter() - began, found

        answers(batches[0], batches[0], max(1, new // 16), NEVER)  # warms up
        for lengths, batch, count, ends in cases:
            seconds, rollouts = answers(batch, count, new, ends)
            tokens = sum(len(r.completion_ids) for r in rollouts)
            said = {"lengths": lengths, "batch": batch, "prompts": count, "mean tokens": tokens / count}
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            rows.append({**said, "seconds": seconds, "tokens/s": tokens / seconds, "peak GiB": peak})
            print(rows[-1], flush=True)  # stays, if a later row fails
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        if server is not None:
            server.close()
    return {"rows": rows}


def serve(student: Student, longest: int, lines: int, folder: Path):
    """Returns vLLM as the evaluate command brings it up: alone, with the adapter that was saved."""
    from poweropd_lite.engines.vllm import VllmServer
    from poweropd_lite.models.shape import Served

    student.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    served = Served(save_base(student, folder / "base"), longest, lines, lines, settings().lora_rank)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    server = VllmServer(served, device(), student.dtype, NEVER, folder / "adapter", load_file(adapter))
    server.sync()
    return server
