"""Ollama's Modelfile: which GGUF file, how a turn is put, and where an answer stops."""

from pathlib import Path
from typing import TYPE_CHECKING

from poweropd_lite.files import write_text

if TYPE_CHECKING:
    from poweropd_lite.export.plan import Plan

_SYSTEM, _USER, _ANSWER = "@@system@@", "@@user@@", "@@answer@@"


def write_modelfile(plan: "Plan", folder: Path, gguf_name: str) -> None:
    """Writes Modelfile into a folder: `ollama create NAME -f Modelfile`."""
    lines = [f"FROM ./{gguf_name}", "PARAMETER temperature 0.6"]
    tokenizer = plan.vocabulary.tokenizer
    lines += [
        f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(sorted(plan.vocabulary.stop_ids))
    ]
    lines.append(f'TEMPLATE """{turn_template(plan)}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def turn_template(plan: "Plan") -> str:
    """Returns the chat template's rendering of one turn, in Ollama's notation; the prompt alone if there is no template."""
    tokenizer = plan.vocabulary.tokenizer
    if not tokenizer.chat_template:
        return "{{ .Prompt }}{{ .Response }}"
    thinking = plan.target.run.enable_thinking if plan.target.run is not None else False

    def rendered(messages: list[dict[str, str]], answering: bool = True) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answering, enable_thinking=thinking
        )

    plain = rendered([{"role": "user", "content": _USER}])
    try:
        with_system = rendered([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}])
    except Exception:  # jinja raises what the template's author wrote for roles that it does not take
        with_system = plain
    system, found, rest = with_system.partition(_SYSTEM)
    turn = plain.replace(_USER, "{{ .Prompt }}")
    if found and rest.endswith(plain.removeprefix(tokenizer.bos_token or "")):
        between = rest[: len(rest) - len(plain.removeprefix(tokenizer.bos_token or ""))]
        turn = "{{ if .System }}" + system + "{{ .System }}" + between + "{{ end }}" + turn
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    return turn + "{{ .Response }}" + rendered(turns, answering=False).rpartition(_ANSWER)[2]
