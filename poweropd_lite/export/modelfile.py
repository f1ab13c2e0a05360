"""Ollama's Modelfile: which GGUF file, how a turn is put, and where an answer stops."""

from pathlib import Path

from poweropd_lite.base.files import write_text
from poweropd_lite.export.job import Job

_SYSTEM, _USER, _ANSWER = "@@system@@", "@@user@@", "@@answer@@"


def write_modelfile(job: Job, folder: Path, gguf_name: str) -> None:
    """Writes Modelfile into a folder: `ollama create NAME -f Modelfile`."""
    lines = [f"FROM ./{gguf_name}", "PARAMETER temperature 0.6"]
    tokenizer = job.vocabulary.tokenizer
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(sorted(job.vocabulary.stop_ids))]
    lines.append(f'TEMPLATE """{turn_template(job)}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def turn_template(job: Job) -> str:
    """Returns the chat template's rendering of one turn, in Ollama's notation; the prompt alone if there is no template."""
    from jinja2 import TemplateError

    tokenizer = job.vocabulary.tokenizer
    if not tokenizer.chat_template:
        return "{{ .Prompt }}{{ .Response }}"
    thinking = job.target.run.enable_thinking if job.target.run is not None else False

    def rendered(messages: list[dict[str, str]], answering: bool = True) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answering, enable_thinking=thinking
        )

    # A runtime that puts the beginning of a text there itself must not find it in the template.
    begins = tokenizer.bos_token if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] else None
    user = {"role": "user", "content": _USER}
    before, _, after = rendered([user]).removeprefix(begins or "").partition(_USER)
    try:
        system = rendered([{"role": "system", "content": _SYSTEM}, user]).removeprefix(begins or "")
    except TemplateError:  # a template may take no system message
        system = ""
    told, _, behind = system.partition(_USER)
    if _SYSTEM in told and behind == after:
        told = told.replace(_SYSTEM, "{{ .System }}")
        shared = before if before and told.endswith(before) else ""
        other = "" if shared else "{{ else }}" + before
        before = "{{ if .System }}" + told.removesuffix(shared) + other + "{{ end }}" + shared
    turn = before + "{{ .Prompt }}" + after
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    return turn + "{{ .Response }}" + rendered(turns, answering=False).rpartition(_ANSWER)[2]
