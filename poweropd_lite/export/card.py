"""The model card (README.md): what the export is, how it was trained and scored, its proof, and how to load it.

Training and scores are the run's, or those in the export that this one is made of.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.files import read_json, write_text
from poweropd_lite.base.tables import score_names
from poweropd_lite.base.teachers import SELF, how_kept, name_of
from poweropd_lite.evaluate.serve import adapter_rank
from poweropd_lite.export.handover import REPORT
from poweropd_lite.export.job import Job
from poweropd_lite.models.shape import LORA_RANKS
from poweropd_lite.problems.apart import is_apart, teacher_options
from poweropd_lite.problems.files import SUFFIXES

LICENCES = {"qwen/qwen3": "apache-2.0", "bundled": "apache-2.0"}  # of models that the configs name


def base_name(model: str) -> str:
    """Returns what to call a model: its hub id, or the name of a folder of this machine; "bundled" for a shipped one."""
    return "bundled" if Path(model).parts[-3:-1] == ("poweropd_lite", "tiny") else public(model)


def public(name: str) -> str:
    """Returns a hub id or a benchmark's name as it is; of a path its last part, for whoever reads a card has no such path."""
    return Path(name).resolve().name if _is_path(name) else name


def _is_path(name: str) -> bool:
    # By its form too: it may be gone since.
    by_form = name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in SUFFIXES
    return by_form or os.path.exists(name)


def training(job: Job) -> dict[str, Any] | None:
    """Returns the lines of a card's training table; None if it is not known."""
    run, trained = job.target.run, "every weight"
    if run is None:
        return _read(job.target.adapter or Path(job.target.base), REPORT).get("training")
    if not run.full_finetune:
        base = ", on a 4-bit base" if run.student_bits == 4 else ""
        kind = "DoRA" if job.target.adapter_config.get("use_dora") else "LoRA"
        trained = f"{kind} rank {run.lora_rank}, lora_alpha {run.lora_alpha:g}{base}"
        patterns = [name for name in ("rank_pattern", "alpha_pattern") if job.target.adapter_config.get(name)]
        trained += f", with {' and '.join(patterns)}" if patterns else ""
        trained += f", from the adapter {Path(run.adapter).resolve().name}" if run.adapter is not None else ""
    steps = _read(job.target.run_folder, "summary.json").get("steps", "unknown")
    return {
        "base": base_name(job.target.base if job.target.adapter else run.student),
        "teacher": f"{public(name_of(run, 'teacher'))} ({how_kept(run)})",
        "reward": run.reward_label.replace("power ", "power, alpha "),
        "score": run.score,
        "data": public(run.data) + f" ({run.data_split})" * ("/" in run.data and not _is_path(run.data)),
        "steps": f"{steps} of {run.batch_size} rollouts, at most {run.max_new_tokens} new tokens each",
        "sampling": f"temperature {run.temperature:g}, top-k {run.top_k}, top-p {run.top_p:g}",
        "thinking": "on" if run.enable_thinking else "off (enable_thinking=False)",
        **({"template arguments": run.template_kwargs} if run.template_kwargs else {}),
        **({"teacher's prompts": _shown(run)} if is_apart(run) else {}),
        "learning rate": f"{run.learning_rate:g}, {run.lr_schedule}",
        "trained": trained,
        "seed": run.seed,
    }


def _shown(run: Config) -> str:
    """What was otherwise in the teacher's prompts."""
    told = ", ".join(f"{name}={value}" for name, value in teacher_options(run).items())
    return f"{told}; {run.teacher_prompt!r} for the question" if run.teacher_prompt else told


def evaluation(job: Job) -> str | None:
    """Returns the run's evaluations as Markdown, and what training found before and after; None if there are none."""
    folder, run = job.target.run_folder, job.target.run
    if folder is None or run is None:
        return _read(job.target.adapter or Path(job.target.base), REPORT).get("evaluation")
    tables, k, form = [], run.eval_samples, ".3f" if run.eval_grader else ".1%"
    summary = _read(folder, "summary.json")
    before, after = (summary.get(f"evaluation_{name}") for name in ("before", "after"))
    if before and after and "avg" in before and "avg" in after:
        own = [f"{run.hold_out} of {public(run.data)} that were not trained on"] if run.hold_out else []
        mean, best = score_names(k, bool(run.eval_grader))
        by = f", scored by {run.eval_grader}" if run.eval_grader else ""
        named = ", ".join(public(word.strip()) for word in (run.eval_benchmarks or "").split(","))
        own += [f"{run.eval_problems} problems of {named} at most"] if run.eval_benchmarks else []
        lines = [
            f"Training's own, {' and '.join(own)}, {k} samples each{by}:\n",
            f"| | {mean} | {best} | greedy | answers that stop |\n|---|---|---|---|---|",
        ]
        for name, e in (("before", before), ("after", after)):
            shares = [f"{e[key]:{form}}" for key in ("avg", "any", "greedy")] + [f"{e['stop_share']:.1%}"]
            lines.append(f"| {name} training | {' | '.join(shares)} |")
        tables.append("\n".join(lines))
    elif before and after and before.get("kl") is not None and after.get("kl") is not None:
        tables.append(
            f"KL to the teacher, nats a token, on prompts that were not trained on: {before['kl']:.3f} before training, "
            f"{after['kl']:.3f} after."
        )
    tables += [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("eval/*/results.md"))]
    return "\n\n".join(tables).replace("\n# ", "\n### ") or None


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON file in a run's folder, or of the export that this one is made of."""
    try:
        values = read_json(folder / name) if folder is not None else {}
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError):  # a card without these lines is still true
        return {}


def write_card(job: Job, folder: Path, report: dict[str, Any]) -> None:
    """Writes README.md into an export."""
    parts = [_header(job, report), f"# {job.name}", _what(job, report)]
    if rows := report["training"]:
        lines = [f"| {key} | {value} |" for key, value in rows.items()]
        parts += ["## Training", "\n".join(["| | |\n|---|---|", *lines])]
    if report["evaluation"]:
        parts += ["## Evaluation", "Of the trained model itself, not of this file.", report["evaluation"]]
    parts += ["## Loading", _loading(job, folder, report), "## Proof", _proof(report), "## Licence", _licence(job)]
    write_text(folder / "README.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _header(job: Job, report: dict[str, Any]) -> str:
    import yaml

    library = {"adapter": "peft", "gguf": "gguf"}.get(job.config.to, "transformers")
    tags = ["on-policy-distillation", "poweropd"] if report["training"] else []
    tags += ["lora"] if job.config.to == "adapter" else []
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    if licence := _known_licence(_origin(job)):
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
    what = f"{kinds[job.config.to]}, of {_origin(job)}{f' at revision {job.revision}' if job.revision else ''}."
    if rows := report["training"]:
        formula = " (p^alpha - q^alpha)" if rows["reward"].startswith("power") else ""
        what += f" Trained by on-policy distillation from {rows['teacher']} with reward {rows['reward']}{formula}" + (
            ", as in [PowerOPD](https://arxiv.org/abs/2606.17199)." if formula else "."
        )
    notes = "".join(f"\n\nNote: {note}." for note in report["notes"])
    return f"{what} Made by poweropd_lite {report['versions']['poweropd_lite']}.{notes}"


def _loading(job: Job, folder: Path, report: dict[str, Any]) -> str:
    place, base = job.config.push or ".", job.target.base
    base = str(Path(base).resolve()) if Path(base).is_dir() else base  # "./mine" is elsewhere, seen from this folder
    name = re.sub(r"[^a-z0-9._-]+", "-", job.name.lower()).strip("-.") or "model"  # for a shell and Ollama
    inside = "" if job.config.push else "From inside this folder:\n\n"
    text = '"What is 12 * 7?"'
    if job.vocabulary.tokenizer.chat_template:
        chat = f'[{{"role": "user", "content": {text}}}], tokenize=False, add_generation_prompt=True'
        text = f"tokenizer.apply_chat_template({chat})"
    whole = job.whole is not None and job.config.to in ("adapter", "merged-16bit")
    auto = f"AutoModelFor{'ImageTextToText' if whole else 'CausalLM'}"
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
    ask = (
        f"text = {text}\n"
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))\n```\n\n"
    )
    if job.config.to == "adapter":
        stops, rank = sorted(report["stop_tokens"].values()), adapter_rank(job.target) or 1
        most = next((limit for limit in LORA_RANKS if rank <= limit), rank)
        own = f'model.generation_config = GenerationConfig.from_pretrained("{place}")  # it stops at {stops}\n'
        return (
            f"{inside}```python\nfrom peft import PeftModel\n"
            f"from transformers import {auto}, AutoTokenizer, GenerationConfig\n\n"
            f'base = {auto}.from_pretrained("{base}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{place}")\n{tokenizer}{own}{ask}'
            f"vLLM: `vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {most} --lora-modules {name}={place}`; it takes "
            "its stop "
            f'tokens from the base, so send `"stop_token_ids": {stops}` with each request, and give it the chat '
            "template here "
            "(`--chat-template`).\n\n`reference.json` holds what training saw of this adapter: `python -m "
            "poweropd_lite.export` checks it before it makes anything of it."
        )
    if job.config.to == "gguf":
        file, text = next(folder.glob("*.gguf")).name, ".get_text_config()" if job.whole else ""
        # transformers reads a Mistral's file as a Llama's.
        kind = job.model_config.get_text_config().model_type
        own = "LlamaConfig" if kind == "mistral" else "AutoConfig"
        why = " (without the config it takes 128 for the size of a head)" * kind.startswith("qwen3")
        return (
            f"{inside}llama.cpp: `llama-cli -m {file} -cnv --jinja`; Python: `llama_cpp.Llama('{file}')`.\n\n"
            f"Ollama: `ollama create {name} -f Modelfile` with the [Modelfile](Modelfile) here, then `ollama run "
            f"{name}`.\n\n"
            f'transformers: `AutoModelForCausalLM.from_pretrained("{place}", gguf_file="{file}", '
            f'config={own}.from_pretrained("{base}"){text})`{why}.'
        )
    return (
        f"{inside}```python\nfrom transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{place}", dtype="auto")\n{tokenizer}{ask}'
        + (f"vLLM: `vllm serve {place}`." if job.config.to == "merged-16bit" else "It needs bitsandbytes.")
    )


def _proof(report: dict[str, Any]) -> str:
    proof = report["proof"]
    found, limit, effect, share = (proof[key] for key in ("difference", "limit", "adapter_effect", "effect_kept"))
    moved, slope = "", "a least-squares slope: rounding may put it above 100%"
    if share is not None:
        moved = f" The adapter moves them by {effect['mean']:.2g} on average; {share:.1%} of that is kept ({slope})."
    return (
        "Before it was handed over, log-probs of the likeliest next tokens of fixed texts were compared with the trained model's, in "
        f"float32 arithmetic: {found['mean']:.2g} nats apart on average, {found['largest']:.2g} at most "
        f"({limit['mean']:.1g} and {limit['largest']:.1g} are allowed for {proof['kind']}).{moved} A program that "
        "computes in 16 bits adds its own rounding. All figures: `export.json`."
    )


def _known_licence(model: str) -> str | None:
    return next((licence for start, licence in LICENCES.items() if model.lower().startswith(start)), None)


def _licence(job: Job) -> str:
    run, models = job.target.run, {"base": _origin(job)}
    models |= {"teacher": public(name_of(run, "teacher")), "data": public(run.data)} if run is not None else {}
    if models.get("teacher") == SELF:
        del models["teacher"]
    theirs = "see its own card; its terms hold for what is derived from it"
    known = {
        role: _known_licence(name) if role != "data" or name == "bundled" else None for role, name in models.items()
    }
    return "\n".join(f"- {role} {name}: {known[role] or theirs}" for role, name in models.items())
