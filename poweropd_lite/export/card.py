"""The model card (README.md): what the export is, how it was trained and scored, its proof, and how to load it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.files import write_text

if TYPE_CHECKING:
    from poweropd_lite.config import Config
    from poweropd_lite.export.plan import Plan

LICENCES = {  # of models that the configs name; any other card says where to look
    "qwen/qwen3": "apache-2.0",
    "bundled": "apache-2.0",
}


def write_card(plan: "Plan", folder: Path, report: dict[str, Any]) -> None:
    """Writes README.md into an export."""
    run = plan.target.run
    name = _name(plan)
    parts = [_header(plan), f"# {name}", _what(plan, report)]
    if run is not None:
        parts += ["## Training", _training(run, plan)]
    if table := _evaluation(plan):
        parts += ["## Evaluation", table]
    parts += ["## Loading", _loading(plan, folder, name), "## Proof", _proof(report), "## Licence", _licence(plan)]
    write_text(folder / "README.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _name(plan: "Plan") -> str:
    if plan.config.push:
        return plan.config.push.split("/")[1]
    own = plan.out.resolve().name
    return (
        f"{plan.target.run_folder.resolve().name}-{own}" if plan.target.run_folder and plan.config.out is None else own
    )


def base_name(plan: "Plan") -> str:
    """Returns what to call the base model: its hub id, or the shipped one's name, rather than a folder of this machine."""
    if Path(plan.target.base).parts[-3:] == ("poweropd_lite", "tiny", "student"):
        return "bundled"
    return plan.target.base


def _header(plan: "Plan") -> str:
    import yaml

    library = {"adapter": "peft", "gguf": "gguf"}.get(plan.config.to, "transformers")
    tags = ["on-policy-distillation", "poweropd", *(["lora"] if plan.config.to == "adapter" else [])]
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    licence = _known_licence(base_name(plan))
    if licence is not None:
        fields["license"] = licence
    if not Path(plan.target.base).exists():
        fields["base_model"] = plan.target.base
        relation = {"adapter": "adapter", "merged-16bit": "finetune"}
        fields["base_model_relation"] = relation.get(plan.config.to, "quantized")
    if plan.target.run is not None and "/" in plan.target.run.data and not Path(plan.target.run.data).exists():
        fields["datasets"] = [plan.target.run.data]
    return "---\n" + yaml.safe_dump(fields, sort_keys=False) + "---"


def _what(plan: "Plan", report: dict[str, Any]) -> str:
    kinds = {
        "adapter": "A LoRA adapter in PEFT's format",
        "merged-16bit": f"One model in {report['weights']}, adapter merged",
        "merged-4bit": "One model in NF4 (bitsandbytes), adapter merged before it was rounded",
        "gguf": f"A GGUF file ({report['weights']}) for llama.cpp and Ollama, adapter merged",
    }
    revision = f" at revision {plan.revision}" if plan.revision else ""
    run = plan.target.run
    how = ""
    if run is not None:
        how = f" It learnt from {_shown(run.teacher)} by on-policy distillation with {_reward(run)} ([PowerOPD](https://arxiv.org/abs/2606.17199))."
    notes = "".join(f"\n\nNote: {note}." for note in report["notes"])
    return f"{kinds[plan.config.to]}, of {base_name(plan)}{revision}.{how} Made by poweropd_lite {report['versions']['poweropd_lite']}.{notes}"


def _shown(model: str) -> str:
    return "the teacher bundled with poweropd_lite" if model == "bundled" else model


def _reward(run: "Config") -> str:
    return (
        f"the power reward p^alpha - q^alpha, alpha {run.alpha:g}" if run.reward == "power" else f"reward {run.reward}"
    )


def _training(run: "Config", plan: "Plan") -> str:
    steps = _summary(plan).get("steps", "unknown")
    rows = {
        "base": base_name(plan),
        "teacher": f"{run.teacher} ({run.teacher_bits}-bit)",
        "reward": run.reward + (f", alpha {run.alpha:g}" if run.reward == "power" else ""),
        "score": run.score,
        "data": f"{run.data}{f' ({run.data_split})' if '/' in run.data else ''}",
        "steps": f"{steps} of {run.batch_size} rollouts, at most {run.max_new_tokens} new tokens each",
        "sampling": f"temperature {run.temperature:g}, top-k {run.top_k}, top-p {run.top_p:g}",
        "learning rate": f"{run.learning_rate:g}, {run.lr_schedule}",
        "trained": "every weight" if run.full_finetune else f"LoRA rank {run.lora_rank}, lora_alpha {run.lora_alpha:g}",
        "seed": run.seed,
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _summary(plan: "Plan") -> dict[str, Any]:
    if plan.target.run_folder is None:
        return {}
    try:
        found = json.loads((plan.target.run_folder / "summary.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # a card without these lines is still true
        return {}


def _evaluation(plan: "Plan") -> str:
    """The tables of the run's evaluations, or what training itself found before and after."""
    folder = plan.target.run_folder
    if folder is None:
        return ""
    tables = [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("eval/*/results.md"))]
    if tables:
        return "\n\n".join(tables).replace("\n# ", "\n### ").removeprefix("# ")
    summary = _summary(plan)
    rows = [(k, summary.get(f"evaluation_{k}")) for k in ("before", "after")]
    if not all(e for _, e in rows):
        return ""
    k = plan.target.run.eval_samples
    head = f"| training on {plan.target.run.eval_benchmarks} | Avg@{k} | Pass@{k} | greedy | answers that stop |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {name} | {e['avg']:.1%} | {e['any']:.1%} | {e['greedy']:.1%} | {e['stop_share']:.1%} |" for name, e in rows
    )


def _loading(plan: "Plan", folder: Path, name: str) -> str:
    place = plan.config.push or name
    base = plan.target.base
    if plan.config.to == "adapter":
        rank = (plan.target.adapter_config or {}).get("r", 8)
        return (
            f"```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{place}")\ntokenizer = AutoTokenizer.from_pretrained("{place}")\n```\n\n'
            f"vLLM: `vllm serve {base} --enable-lora --max-lora-rank {max(8, rank)} --lora-modules {name}={place}`. Its stop tokens are then the "
            f"base's; send `stop_token_ids` of the `generation_config.json` here with each request."
        )
    if plan.config.to == "gguf":
        file = next(folder.glob("*.gguf")).name
        return (
            f"llama.cpp: `llama-cli -m {file} -cnv --jinja`; Python: `llama_cpp.Llama('{file}')`.\n\n"
            f"Ollama: `ollama create {name.lower()} -f Modelfile` with the [Modelfile](Modelfile) here, then `ollama run {name.lower()}`."
        )
    return (
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")\ntokenizer = AutoTokenizer.from_pretrained("{place}")\n```\n\n'
        + (f"vLLM: `vllm serve {place}`." if plan.config.to == "merged-16bit" else "It needs bitsandbytes.")
    )


def _proof(report: dict[str, Any]) -> str:
    proof = report["proof"]
    found, effect, share = proof["difference"], proof["adapter_effect"], proof["effect_kept"]
    text = (
        f"Before it was handed over, next-token log-probs on fixed texts were compared with the live model's: {found['mean']:.2g} nats apart on "
        f"average, {found['largest']:.2g} at most ({proof['limit']['mean']:g} and {proof['limit']['largest']:g} are allowed for {proof['kind']})."
    )
    if share is not None:
        text += f" The adapter moves them by {effect['mean']:.2g} on average; {share:.1%} of that is kept."
    return text + " All figures: `export.json`."


def _known_licence(model: str) -> str | None:
    return next((licence for start, licence in LICENCES.items() if model.lower().startswith(start)), None)


def _licence(plan: "Plan") -> str:
    lines = []
    models = {"base": base_name(plan)} | ({"teacher": plan.target.run.teacher} if plan.target.run else {})
    for role, model in models.items():
        licence = _known_licence(model)
        lines.append(f"- {role} {model}: {licence or 'see its own card; its terms hold for what is derived from it'}")
    if plan.target.run is not None:
        lines.append(
            f"- data {plan.target.run.data}: {'apache-2.0' if plan.target.run.data == 'bundled' else 'see its own card'}"
        )
    return "\n".join(lines)
