"""How fast the built-in loop answers: 0.6B with its adapter, prompts of 128, at most 512 new tokens, temperature 0.6.

Answers of one length are the best case; in the uneven one they end anywhere (mean 200 tokens, if nothing cut them), and
twice as many prompts as lines wait for a place.
"""

import dataclasses

import torch
from decoding import NEVER, timed
from random_models import make_student
from shapes import SHAPES, TOKENS, sampling, settings


def measure(tiny: bool) -> dict:
    """Returns a row a batch: tokens by second, prompts read and answers drawn."""
    name, batches, length, new = ("tiny-student", (4, 8), 12, 16) if tiny else ("0.6b", (256, 512), 128, 512)
    student, shape = make_student(name, settings(), torch.bfloat16), SHAPES[name]
    drawn = dataclasses.replace(sampling(shape), temperature=0.6)
    timed(student, batches[0], length, new // 16, drawn)
    cases = [("one length", batch, batch, NEVER) for batch in batches]
    # Every 200th id ends an answer (every 8th in small shapes): random models find all about as likely.
    stops = frozenset(range(7, min(TOKENS, shape.vocabulary - 10), 8 if tiny else 200))
    cases.append(("uneven", batches[0], 2 * batches[0], stops))
    rows = []
    for lengths, batch, count, ends in cases:
        seconds, rollouts = timed(student, count, length, new, drawn, ends, batch)
        tokens = sum(len(r.completion_ids) for r in rollouts)
        said = {"lengths": lengths, "batch": batch, "prompts": count, "mean tokens": tokens / count}
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        rows.append({**said, "seconds": seconds, "tokens/s": tokens / seconds, "peak GiB": peak})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
    return {"rows": rows}
