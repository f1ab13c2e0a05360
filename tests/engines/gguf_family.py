"""A family's tiny random model with an adapter, exported to GGUF and read by the real llama.cpp, all in the folder it runs in.

    python tests/engines/gguf_family.py FAMILY [CHECKOUT]

`CHECKOUT` is a llama.cpp checkout, whose converter writes what the package does not. Prints RESULT and what was found: whether
llama.cpp turns texts into the same ids, and how far its log-probs are from the live adapter's.
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import WINDOW, make_family

from poweropd_lite.base.config import load_config
from poweropd_lite.export import export
from poweropd_lite.export.gguf import ARCHITECTURES
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.student import load_student

TEXTS = [
    "Compute 8 + 5 * 3.",
    "Ann has 12 pens and loses 5.",
    "x = 7, so 2x + 1 = 15\n\nIt's \\boxed{15}.",
    "12345  naïve 東京",
]
# As these families' checkpoints are, or llama.cpp takes them to be: a Mistral and a Phi-3 without a window, weights of experts
# that add up to 1, and every sixth layer of a Gemma 3 without a window.
CHANGES: dict[str, dict] = {
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
}
# With a tokenizer of sentencepiece's, where llama.cpp's converter reads one; by the bundled tokenizer, as by any that is not on
# its list, it goes no further.
NEARLY_EVEN = (
    0.05  # nats: the most that llama.cpp may be off by; of ids nearer to each other either may be the likelier
)
SENTENCES = {"gemma2", "gemma3_text", "phi3", "smollm3", "granite"}


def write_tokenizer(family: str, folder: Path) -> int:
    """Writes the bundled tokenizer, or one as Gemma's into a model's folder; returns its rows."""
    from transformers import AutoTokenizer, GemmaTokenizer

    if family not in SENTENCES:
        tokenizer = AutoTokenizer.from_pretrained(model_path("bundled", "student"))
    else:
        import sentencepiece

        # A text that does not change: another tokenizer would be another case.
        out, text = io.BytesIO(), (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").splitlines()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(filter(str.strip, text)), model_writer=out, vocab_size=500, model_type="bpe",
            byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False, minloglevel=2,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
        )  # fmt: skip
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(out.getvalue())
        tokenizer = GemmaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return 512


def main(family: str, checkout: str | None = None) -> None:
    """Prints RESULT and a JSON object."""
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    base, rows = Path("base"), write_tokenizer(family, Path("base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    make_family(family, base, vocab_size=rows, **ends, **CHANGES.get(family, {}))
    student = load_student(load_config(student=str(base), lora_rank=4), torch.device("cpu"), torch.float32)
    model = student.model.eval()
    with torch.no_grad():
        for i, (name, p) in enumerate(student.trainable().items()):
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    model.save_pretrained("adapter")
    lines = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert max(map(len, lines)) > WINDOW
    with torch.no_grad():
        live = [model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).double().numpy() for ids in lines]
    flags = {"base": str(base), "to": "gguf", "gguf_type": "f32", "output": "g"}
    done = export("adapter", lambda text: None, **flags, **({} if checkout is None else {"llama_cpp": checkout}))
    reader = Llama("g/model-f32.gguf", n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    gaps, greedy, same = [], [], []
    for text, ids, said in zip(TEXTS, lines, live, strict=True):
        same.append(reader.tokenize(text.encode(), add_bos=False, special=True) == ids)
        reader.reset()
        reader.eval(ids)
        z = np.array(reader.scores[: len(ids)], dtype=np.float64)[:, :rows]
        z -= np.logaddexp.reduce(z, -1, keepdims=True)
        gaps.append(np.abs(z - said)[said > -7])
        second, first = np.sort(said, -1)[:, -2:].T
        greedy += list((z.argmax(-1) == said.argmax(-1))[first - second > 2 * NEARLY_EVEN])
    gaps = np.concatenate(gaps)
    found = {
        "mean": gaps.mean(),
        "largest": gaps.max(),
        "same_ids": same,
        "greedy": float(np.mean(greedy)),
        "sure": len(greedy),
    }
    found["converted"] = student.model.config.model_type not in ARCHITECTURES
    found |= {"effect": done.report["proof"]["adapter_effect"]["mean"], "notes": done.report["notes"]}
    print("RESULT " + json.dumps(found), flush=True)
    os._exit(0)  # llama.cpp's own end writes into what Python has closed


if __name__ == "__main__":
    main(*sys.argv[1:])
