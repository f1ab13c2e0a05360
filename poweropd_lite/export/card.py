"""The model card (README.md): what the export is, how it was trained and scored, its proof, and how to load it."""

import re
from pathlib import Path
from typing import Any

from poweropd_lite.base.files import write_text
from poweropd_lite.export.history import base_name
from poweropd_lite.export.job import Job
from poweropd_lite.models.shape import LORA_RANKS

LICENCES = {"qwen/qwen3": "apache-2.0", "bundled": "apache-2.0"}  # of models that the configs name


def write_card(job: Job, folder: Path, report: dict[str, Any]) -> None:
    """Writes README.md into an export."""
    parts = [_header(job, report), f"# {job.name}", _what(job, report)]
    if rows := report["training"]:
        parts += [
            "## Training",
            "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        ]
    if report["evaluation"]:
        parts += ["## Evaluation", "Of the trained model itself, not of this file.", report["evaluation"]]
    parts += [
        "## Loading",
        _loading(job, folder, report),
        "## Proof",
        _proof(report),
        "## Licence",
        _licence(job),
    ]
    write_text(folder / "README.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _header(job: Job, report: dict[str, Any]) -> str:
    import yaml

    library = {"adapter": "peft", "gguf": "gguf"}.get(job.config.to, "transformers")
    tags = ["on-policy-distillation", "poweropd"] if report["training"] else []
    tags += ["lora"] if job.config.to == "adapter" else []
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    licence = _known_licence(_origin(job))
    if licence is not None:
        fields["license"] = licence
    if not Path(job.target.base).exists():
        fields["base_model"] = job.target.base
        relation = {"adapter": "adapter", "merged-16bit": "finetune"}
        fields["base_model_relation"] = relation.get(job.config.to, "quantized")
    run = job.target.run
    if run is not None and "/" in run.data and not Path(run.data).exists():
        fields["datasets"] = [run.data]
    return "---\n" + yaml.safe_dump(fields, sort_keys=False) + "---"


def _origin(job: Job) -> str:
    """The model that was trained, or that is exported as it is."""
    run = job.target.run
    return base_name(run.student if run is not None and job.target.adapter is None else job.target.base)


def _what(job: Job, report: dict[str, Any]) -> str:
    merged = ", adapter merged" if job.target.adapter else ""
    kinds = {
        "adapter": "A LoRA adapter in PEFT's format",
        "merged-16bit": f"One model in {report['weights']}{merged}",
        "merged-4bit": f"One model in NF4 (bitsandbytes){merged}",
        "gguf": f"A GGUF file ({report['weights']}) for llama.cpp and Ollama{merged}",
    }
    revision = f" at revision {job.revision}" if job.revision else ""
    how = ""
    if rows := report["training"]:
        formula = " (p^alpha - q^alpha)" if rows["reward"].startswith("power") else ""
        how = (
            f" Trained by on-policy distillation from {rows['teacher']} with reward {rows['reward']}{formula}, as in "
            "[PowerOPD](https://arxiv.org/abs/2606.17199)."
        )
    notes = "".join(f"\n\nNote: {note}." for note in report["notes"])
    version = report["versions"]["poweropd_lite"]
    origin = _origin(job)
    return f"{kinds[job.config.to]}, of {origin}{revision}.{how} Made by poweropd_lite {version}.{notes}"


def _loading(job: Job, folder: Path, report: dict[str, Any]) -> str:
    place = job.config.push or "."
    inside = "" if job.config.push else "From inside this folder:\n\n"
    ask = (
        'text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 12 * 7?"}], tokenize=False, add_generation_prompt=True)\n'
        if job.vocabulary.tokenizer.chat_template
        else 'text = "What is 12 * 7?"\n'
    )
    ask += (
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))\n```"
    )
    stops = sorted(report["stop_tokens"].values())
    if job.config.to == "adapter":
        return inside + (
            f"```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{job.target.base}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{place}")\ntokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            f'model.generation_config = GenerationConfig.from_pretrained("{place}")  # it stops at {stops}\n{ask}\n\n'
            f"vLLM: `vllm serve {job.target.base} --enable-lora --max-lora-rank {_vllm_rank(job)} --lora-modules {_plain(job.name)}={place}`; it takes its stop "
            f'tokens from the base, so send `"stop_token_ids": {stops}` with each request, and give it the chat template here (`--chat-template`).\n\n'
            "`reference.json` holds what training saw of this adapter: `python -m poweropd_lite.export` checks it before it makes anything of it."
        )
    if job.config.to == "gguf":
        file = next(folder.glob("*.gguf")).name
        return inside + (
            f"llama.cpp: `llama-cli -m {file} -cnv --jinja`; Python: `llama_cpp.Llama('{file}')`.\n\n"
            f"Ollama: `ollama create {_plain(job.name)} -f Modelfile` with the [Modelfile](Modelfile) here, then `ollama run {_plain(job.name)}`.\n\n"
            f'transformers: `AutoModelForCausalLM.from_pretrained("{place}", gguf_file="{file}", config=AutoConfig.from_pretrained("{job.target.base}"))` '
            "(without the config it takes 128 for the size of a head)."
        )
    return inside + (
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")\ntokenizer = AutoTokenizer.from_pretrained("{place}")\n{ask}\n\n'
        + (f"vLLM: `vllm serve {place}`." if job.config.to == "merged-16bit" else "It needs bitsandbytes.")
    )


def _plain(name: str) -> str:
    """A name that a shell and Ollama take as it is."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"


def _vllm_rank(job: Job) -> int:

    saved = job.target.adapter_config or {}
    rank = max([saved.get("r") or 8, *(saved.get("rank_pattern") or {}).values()])
    return next((limit for limit in LORA_RANKS if rank <= limit), rank)


def _proof(report: dict[str, Any]) -> str:
    proof = report["proof"]
    found, effect, share = proof["difference"], proof["adapter_effect"], proof["effect_kept"]
    text = (
        f"Before it was handed over, next-token log-probs on fixed texts were compared with the trained model's, in float32 arithmetic: {found['mean']:.2g} nats "
        f"apart on average, {found['largest']:.2g} at most ({proof['limit']['mean']:.1g} and {proof['limit']['largest']:.1g} are allowed for {proof['kind']})."
    )
    if share is not None:
        text += f" The adapter moves them by {effect['mean']:.2g} on average; {share:.1%} of that is kept (a least-squares slope: rounding may put it above 100%)."
    return text + " A program that computes in 16 bits adds its own rounding. All figures: `export.json`."


def _known_licence(model: str) -> str | None:
    return next((licence for start, licence in LICENCES.items() if model.lower().startswith(start)), None)


def _licence(job: Job) -> str:
    run, models = job.target.run, {"base": _origin(job)}
    if run is not None:
        models |= {"teacher": run.teacher, "data": run.data}
    lines = []
    for role, name in models.items():
        licence = _known_licence(name) if role != "data" or name == "bundled" else None
        lines.append(f"- {role} {name}: {licence or 'see its own card; its terms hold for what is derived from it'}")
    return "\n".join(lines)
