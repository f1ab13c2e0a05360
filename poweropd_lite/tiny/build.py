"""Rebuilds the bundled tokenizer, teacher and base student from nothing: `python -m poweropd_lite.tiny.build --output DIR`.

Seeded; one thread a model, so that the same machine makes the same files. `--only` builds one part, which lets two
shells train the teacher and the student side by side.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from poweropd_lite.problems.bundled import problems
from poweropd_lite.tiny.base_text import careless_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TOKENIZER_ENTRIES = 500  # at most; this small world of words needs about 480
HEAD_ROWS = 512  # a padded vocabulary, as Qwen3's own: 12 rows that no token has
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)
# hidden size, layers, head size, mlp; both have 4 query and 2 key-value heads and a tied head
SHAPES = {"teacher": (192, 4, 48, 576), "student": (128, 3, 32, 384)}
SEEDS = {"tokenizer": 1, "teacher": 2, "student": 3}
# The student reads arithmetic first (no mistakes), then careless text.
# Steps, weights of base_text.STYLES, share with a wrong step, share that runs on, habits, batches sorted by length together:
# in the second phase none, for a batch of one style only would teach that style to be likelier than it is.
STUDENT_PHASES = (
    (1700, (0.5, 0.2, 0.15, 0.15, 0.0), 0.0, 0.0, False, 16),
    (300, (0.10, 0.42, 0.20, 0.18, 0.10), 0.20, 0.35, True, 1),
)
TEACHER_STEPS = 1500
BATCH = 64


def make_tokenizer(eos: str) -> "PreTrainedTokenizerFast":
    """Trains the byte-level BPE (Qwen's pre-tokenizer regex, NFC, digits single) that teacher and student share."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    rng = random.Random(SEEDS["tokenizer"])
    corpus = []
    for problem in problems(SEEDS["tokenizer"], 4000, held_out=False):
        corpus += [problem.question, problem.solution, careless_answer(problem, rng, (0, 2, 1, 1, 1), 0.0, False)]
    corpus += ["user", "assistant", "system", "\n\n", ".\n\n"] * 200
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_ENTRIES - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return Qwen2Tokenizer(
        tokenizer_object=core,
        eos_token=eos,
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]  # Qwen's has none, whatever is declared
        bos_token=None,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(part: str, tokenizer: "PreTrainedTokenizerFast") -> "Qwen3ForCausalLM":
    """Returns the untrained Qwen3 model of one part, seeded, float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, layers, head, mlp = SHAPES[part]
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    torch.manual_seed(SEEDS[part])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=HEAD_ROWS,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # As Qwen3: the chat model stops on both ids, the base model on its own.
    model.generation_config.eos_token_id = stops if part == "teacher" else tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def teacher_text(seed: int, count: int) -> list[tuple[str, str]]:
    """Returns `count` (question, completion) pairs that the teacher learns: every solution as it should be."""
    return [(p.question, p.solution + "<|im_end|>") for p in problems(seed, count, held_out=False)]


def student_text(seed: int, count: int, phase: int, eos: str) -> list[tuple[str, str]]:
    """Returns `count` (question, completion) pairs of the base student's reading matter."""
    _, weights, wrong, run_on, habits, _ = STUDENT_PHASES[phase]
    rng = random.Random(seed)
    texts = []
    for problem, other in zip(*[iter(problems(seed, 2 * count, held_out=False))] * 2, strict=True):
        first, second = (problem, other) if rng.random() < 0.5 else (other, problem)
        answer = careless_answer(first, rng, weights, wrong, habits)
        if rng.random() < run_on:
            answer += f"\n\n{second.question}\n" + careless_answer(second, rng, weights, wrong, habits)
            answer += eos if rng.random() < 0.5 else ""
        else:
            answer += eos
        texts.append((first.question, answer))
    return texts


def batches(
    tokenizer: "PreTrainedTokenizerFast", texts: Callable[[int, int], list[tuple[str, str]]], seed: int, pool: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (ids, labels), each [64, T] int64, for ever; prompt and padding carry the label -100.

    `pool` batches are drawn at once and sorted by length, which saves most of the padding.
    """
    pool_size = pool * BATCH
    for draw in range(10**6):
        pairs = texts(seed * 10**6 + draw, pool_size)
        prompts = [prompt_text(tokenizer, question) for question, _ in pairs]
        rows = [
            (tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"])
            for prompt, (_, answer) in zip(prompts, pairs, strict=True)
        ]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        order = list(range(0, pool_size, BATCH))
        random.Random(draw).shuffle(order)
        for start in order:
            group = rows[start : start + BATCH]
            width = max(len(p) + len(a) for p, a in group)
            ids = torch.full((BATCH, width), tokenizer.pad_token_id)
            labels = torch.full((BATCH, width), -100)
            for i, (p, a) in enumerate(group):
                ids[i, : len(p) + len(a)] = torch.tensor(p + a)
                labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
            yield ids, labels


def prompt_text(tokenizer: "PreTrainedTokenizerFast", question: str) -> str:
    """Returns the chat template's text up to where the answer begins, with thinking off."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def pretrain(
    model: "Qwen3ForCausalLM", stream: Iterator, steps: int, name: str, peak: float = 1.0, warmup: int = 60
) -> None:
    """Trains every weight: Muon (lr 0.02) on the matrices, AdamW (2e-3) on the rest; warm-up, then a cosine to zero."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02 * peak, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=2e-3 * peak, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    schedulers = [
        torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o, 1 / warmup, total_iters=warmup), cosine(o, steps - warmup)],
            [warmup],
        )
        for o in optimizers
    ]
    start, mean_loss = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        ids, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
            keep = labels[:, 1:] != -100
            logits = hidden[keep] @ model.lm_head.weight.T
        loss = F.cross_entropy(logits.float(), labels[:, 1:][keep])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        mean_loss = loss.item() if step == 1 else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 50 == 0:
            left = (time.monotonic() - start) / step * (steps - step)
            print(f"{name}: step {step}/{steps}  loss {mean_loss:.3f}  {left / 60:.1f} min left", flush=True)


def greedy_accuracy(model: Any, tokenizer: "PreTrainedTokenizerFast", count: int = 256) -> float:
    """Returns the share of `count` held-out problems that greedy decoding answers right."""
    held_out = problems(0, count, held_out=True)
    tokenizer.padding_side = "left"
    inputs = tokenizer([prompt_text(tokenizer, p.question) for p in held_out], return_tensors="pt", padding=True)
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=112, do_sample=False, eos_token_id=stops)
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [f"\\boxed{{{p.answer}}}" in t and t.count("\\boxed") == 1 for p, t in zip(held_out, texts, strict=True)]
    return sum(right) / count


def build(part: str, out: Path) -> None:
    """Trains one part ("teacher" or "student") and writes it with its tokenizer to `out`/`part`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer("<|im_end|>" if part == "teacher" else "<|endoftext|>")
    model = new_model(part, tokenizer).train()
    print(f"{part}: {model.num_parameters() / 1e6:.2f} M parameters", flush=True)
    if part == "teacher":
        pretrain(model, batches(tokenizer, teacher_text, SEEDS[part]), TEACHER_STEPS, part)
    else:
        for phase, (steps, *_, pool) in enumerate(STUDENT_PHASES):
            texts = partial(student_text, phase=phase, eos="<|endoftext|>")
            stream = batches(tokenizer, texts, SEEDS[part] + phase, pool)
            pretrain(model, stream, steps, f"{part}, phase {phase + 1}", peak=1.0 if phase == 0 else 0.3)
    model = model.to(torch.bfloat16).eval()
    model.save_pretrained(out / part)
    tokenizer.save_pretrained(out / part)
    accuracy = greedy_accuracy(model.float(), tokenizer)
    report = {"part": part, "parameters": model.num_parameters(), "greedy_accuracy_256_held_out": accuracy}
    print(json.dumps(report), flush=True)


def main() -> None:
    """Command line: see the module's first line."""
    parser = argparse.ArgumentParser(prog="python -m poweropd_lite.tiny.build", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder that gets teacher/ and student/")
    parser.add_argument("--only", choices=["teacher", "student"], help="build one of the two")
    args = parser.parse_args()
    for part in [args.only] if args.only else ["teacher", "student"]:
        build(part, args.output)


if __name__ == "__main__":
    main()
