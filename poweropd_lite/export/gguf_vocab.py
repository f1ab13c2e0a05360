"""A tokenizer as GGUF metadata (tokens, merges, how text is split, where an answer stops) and as Ollama's Modelfile.

llama.cpp splits text by rules of its own, known by name; a tokenizer whose rule is not one of them would give other ids
there, so it is refused.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_text
from poweropd_lite.evaluate.target import Vocabulary
from poweropd_lite.export.job import Job
from poweropd_lite.problems.prompts import end_of_turn, template_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ANSWER = "@@system@@", "@@user@@", "@@answer@@"
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
    if (state["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return None, "its tokenizer rewrites text before it is split"
    plain = bool(steps) and steps[-1].get("use_regex") and not steps[-1]["add_prefix_space"]
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and plain and not model.get("ignore_merges"):
        return "smollm", None  # SmolLM2's: every digit, then GPT-2's pattern
    if kinds != ["Split", "ByteLevel"] or steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
        return None, "its tokenizer splits text in steps that are not known here"
    if steps[1]["use_regex"] or steps[1]["add_prefix_space"]:
        return None, "its tokenizer splits or pads text once more"
    name = PATTERNS.get(steps[0]["pattern"].get("Regex"))
    if name is None:
        return None, "its tokenizer splits text by a pattern that is not known here"
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        return None, "its tokenizer merges whole words otherwise than llama.cpp does"
    return name, None


def add_vocabulary(writer: Any, job: Job) -> dict[str, Any]:
    """Adds a tokenizer with its template and stop tokens to a GGUF writer; returns what a reader must find."""
    from gguf import TokenType

    tokenizer, rows = job.vocabulary.tokenizer, range(job.model_config.vocab_size)
    added = tokenizer.added_tokens_decoder
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [added[i].content if i in added else names.get(i, f"[PAD{i}]") for i in rows]
    types = [TokenType.NORMAL if i in names else TokenType.UNUSED for i in rows]
    for i in rows:
        if i in added:
            # llama.cpp's own converter takes <|names like this|> for control tokens whatever the tokenizer says.
            named = tokens[i].startswith("<|") and tokens[i].endswith("|>")
            types[i] = TokenType.CONTROL if added[i].special or named else TokenType.USER_DEFINED
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    split = pre_tokenizer(tokenizer)[0]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    eos, others = stops(job.vocabulary)
    ids = dict(zip(("eos", "eot", "eom"), (eos, *others), strict=False)) | {"padding": tokenizer.pad_token_id}
    facts = {f"tokenizer.ggml.{key}_token_id": token for key, token in ids.items() if token is not None}
    for name, token in facts.items():
        writer.add_uint32(name, token)
    own = tokenizer.bos_token_id
    begin = own if own is not None else job.model_config.bos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    writer.add_add_bos_token(own is not None and tokenizer("a")["input_ids"][0] == own)
    writer.add_add_eos_token(False)
    if isinstance(templates := tokenizer.chat_template, dict):  # templates by name
        writer.add_chat_template([{"name": name, "template": template} for name, template in templates.items()])
        for name, template in templates.items():
            facts["tokenizer.chat_template" + f".{name}" * (name != "default")] = template
    elif templates:
        writer.add_chat_template(templates)
        facts["tokenizer.chat_template"] = templates
    return facts | {"tokenizer.ggml.pre": split}


def stops(vocabulary: Vocabulary) -> tuple[int, list[int]]:
    """Returns the end-of-sequence id and the others that end an answer; raises UserError for more than GGUF can name."""
    tokenizer, ids = vocabulary.tokenizer, vocabulary.stop_ids
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ids else min(ids)
    others = sorted(ids - {eos}, key=lambda i: (i != end_of_turn(tokenizer), i))
    if len(others) > 2:
        names = tokenizer.convert_ids_to_tokens(sorted(ids))
        raise UserError(
            f"answers end with one of {len(ids)} tokens ({names}), and a GGUF file names three; type --to merged-16bit"
        )
    return eos, others


def write_modelfile(job: Job, folder: Path, gguf_name: str) -> None:
    """Writes Modelfile into a folder: `ollama create NAME -f Modelfile`."""
    lines = [f"FROM ./{gguf_name}", "PARAMETER temperature 0.6"]
    tokenizer = job.vocabulary.tokenizer
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(sorted(job.vocabulary.stop_ids))]
    lines.append(f'TEMPLATE """{turn_template(job)}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def turn_template(job: Job) -> str:
    """Returns the chat template's rendering of one turn, in Ollama's notation; the prompt alone without a template."""
    from jinja2 import TemplateError

    tokenizer = job.vocabulary.tokenizer
    if not tokenizer.chat_template:
        return "{{ .Prompt }}{{ .Response }}"
    options = template_options(job.target.run) if job.target.run is not None else {"enable_thinking": False}
    # A runtime that puts the beginning of a text there itself must not find it in the template.
    begins = str(tokenizer.bos_token) if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] else ""

    def rendered(answering: bool, **said: str) -> str:
        messages = [{"role": role, "content": text} for role, text in said.items()]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering, **options)
        return str(text).removeprefix(begins)

    before, _, after = rendered(True, user=_USER).partition(_USER)
    try:
        told, _, behind = rendered(True, system=_SYSTEM, user=_USER).partition(_USER)
    except TemplateError:  # a template may take no system message
        told = behind = ""
    if _SYSTEM in told and behind == after:
        told = told.replace(_SYSTEM, "{{ .System }}")
        shared = before if before and told.endswith(before) else ""
        other = "" if shared else "{{ else }}" + before
        before = "{{ if .System }}" + told.removesuffix(shared) + other + "{{ end }}" + shared
    end = rendered(False, user=_USER, assistant=_ANSWER).rpartition(_ANSWER)[2]
    return before + "{{ .Prompt }}" + after + "{{ .Response }}" + end
