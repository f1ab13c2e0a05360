"""How far the loop's decoder and the model itself are from float32 in bfloat16, and what one rounding of the embeddings does.

    python benchmarks/decoder_rounding.py --shape 1.7b

Random weights in Qwen3's true shapes, LoRA with some effect; norms of differences of hidden states by their size. Its check
(engines/loop.py) allows twice the last. On a CPU it takes half a minute for 0.6b, and a minute and 12 GiB for 1.7b.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))

from random_models import make_student
from shapes import device, settings

from poweropd_lite.engines.decode import FastDecoder
from poweropd_lite.engines.loop import _own, _relative, _round_once
from poweropd_lite.models.student import Student


@torch.no_grad()
def main() -> None:
    """Prints them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=["0.6b", "1.7b"], default="0.6b")
    student = make_student(parser.parse_args().shape, settings(lr=1e-6), torch.bfloat16)
    ids = torch.arange(96, device=device()).view(2, 48) * 7 % len(student.head.weight)
    valid, decoder = torch.ones_like(ids, dtype=torch.bool), FastDecoder(student)
    decoder.sync()
    ours = [decoder.prefill(ids[:, :32], valid[:, :32], 48)]
    for i in range(32, 48):
        ours.append(decoder.step(ids[:, i], torch.full_like(ids[:, i], i), i, valid[:, : i + 1]))
    decoded, texts = torch.stack(ours, 1), (ids[:1], ids[1:])
    own = _own(student, texts)[:, 31:]
    hook = student.model.get_input_embeddings().register_forward_hook(partial(_round_once, student.dtype))
    rounded = _own(student, texts)[:, 31:]
    hook.remove()
    exact = _own(Student(student.model.float(), device(), torch.float32), texts)[:, 31:]
    for name, a, b in (
        ("decoder, from the model", decoded, own),
        ("decoder, from float32", decoded, exact),
        ("model, from float32", own, exact),
        ("model, one rounding of the embeddings more", rounded, own),
    ):
        print(f"{name}: {_relative(a, b):.4f}")


if __name__ == "__main__":
    main()
