"""A tokenizer as GGUF metadata: tokens, merges, how text is split, and where an answer stops.

llama.cpp splits text by rules of its own, known by name; a tokenizer whose rule is not one of them would give other ids
there, so it is refused.
"""

import json
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.target import Vocabulary, end_of_turn
from poweropd_lite.export.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {_QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}  # llama.cpp's names


def pre_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> tuple[str | None, str | None]:
    """Returns llama.cpp's name for how a tokenizer splits text, or else why llama.cpp would split it otherwise."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None, "its tokenizer has no tokenizer.json"
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = state["model"], (state["pre_tokenizer"] or {}).get("pretokenizers", [])
    kinds = [step["type"] for step in steps]
    if model["type"] != "BPE" or model.get("byte_fallback") or (state["decoder"] or {}).get("type") != "ByteLevel":
        return None, "its tokenizer is no byte-level BPE"
    if kinds != ["Split", "ByteLevel"] or steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
        return None, "its tokenizer splits text in steps that are not known here"
    if steps[1]["use_regex"] or steps[1]["add_prefix_space"]:
        return None, "its tokenizer splits or pads text once more"
    if (state["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return None, "its tokenizer rewrites text before it is split"
    name = PATTERNS.get(steps[0]["pattern"].get("Regex"))
    if name is None:
        return None, "its tokenizer splits text by a pattern that is not known here"
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        return None, "its tokenizer merges whole words otherwise than llama.cpp does"
    return name, None


def add_vocabulary(writer: Any, job: Job, rows: int) -> None:
    """Adds a tokenizer with its template and stop tokens to a GGUF writer; `rows` is the number of the embedding's rows."""
    from gguf import TokenType

    tokenizer = job.vocabulary.tokenizer
    added = tokenizer.added_tokens_decoder
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for i in range(rows):
        if i in added:
            tokens.append(added[i].content)
            # llama.cpp's own converter takes <|names like this|> for control tokens whatever the tokenizer says.
            named = tokens[-1].startswith("<|") and tokens[-1].endswith("|>")
            types.append(TokenType.CONTROL if added[i].special or named else TokenType.USER_DEFINED)
        elif i in names:
            tokens.append(names[i])
            types.append(TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{i}]")
            types.append(TokenType.UNUSED)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer)[0])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    eos, others = stops(job.vocabulary)
    writer.add_eos_token_id(eos)
    for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(token)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    first = tokenizer("a")["input_ids"][0]
    begins = tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else job.model_config.bos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def stops(vocabulary: Vocabulary) -> tuple[int, list[int]]:
    """Returns the end-of-sequence id and the other ids that end an answer; raises UserError for more than GGUF can name."""
    tokenizer, ids = vocabulary.tokenizer, vocabulary.stop_ids
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ids else min(ids)
    others = sorted(ids - {eos}, key=lambda i: (i != end_of_turn(tokenizer), i))
    if len(others) > 2:
        raise UserError(
            f"an answer of this model ends with one of {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(sorted(ids))}), and a GGUF file "
            "names three; type --to merged-16bit"
        )
    return eos, others
