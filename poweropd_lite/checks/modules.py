"""Whether what a run would train is there: asked of a student without its weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding, UserError
from poweropd_lite.base.teachers import called
from poweropd_lite.checks.pair_checks import Side
from poweropd_lite.models.adapter import adapter_modules, left_out, with_adapter
from poweropd_lite.models.experts import experts_gib, fused_experts, is_mixture
from poweropd_lite.models.saved import check_fit, saved_settings, saved_weights
from poweropd_lite.models.shape import empty_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_modules(config: Config, student: Side) -> Finding:
    """The modules that get an adapter or are trained whole."""
    if config.full_finetune:
        return Finding("ok", "trained modules", "every weight")
    try:
        model = empty_model(student.config, torch.float32, config.trust_remote_code)
        wanted, whole = adapter_modules(model, config) if config.adapter is None else ([], [])
        none, elements = left_out(model), sum(p.numel() for p in model.parameters())
        with torch.device("meta"):
            adapted = with_adapter(model, config)
        if config.adapter is not None:
            path = Path(config.adapter)
            saved = saved_settings(path)
            check_fit(adapted, path, saved_weights(path, saved), config.student, "--student")
            kind = "a DoRA" if saved.get("use_dora") else "an"
            found = f"{kind} adapter of rank {config.lora_rank} and lora_alpha {config.lora_alpha:g} is trained on from {path}"
            return Finding("ok", "trained modules", found)
    except UserError as error:
        return Finding("refusal", "trained modules", str(error))
    found = f"an adapter on {', '.join(wanted)}" + (f"; {', '.join(whole)} trained whole" if whole else "")
    if none and config.lora_targets.strip() == "all-linear":
        share = sum(none.values()) / elements
        found += f"; none on {', '.join(none)}, which are no linear layers ({share:.1%} of the weights)"
        return Finding("ok", "trained modules", found, evidence={"left out": none}, told=True)
    return Finding("ok", "trained modules", found)


def check_experts(config: Config, student: Side, teacher: Side) -> list[Finding]:
    """Refuses bits in which a mixture's fused experts would silently stay in 16: a 4-bit student's, an 8-bit teacher's."""
    return experts_left(config, student.config, teacher.config)


def experts_left(config: Config, student: "PretrainedConfig", teacher: "PretrainedConfig") -> list[Finding]:
    """Returns what check_experts does, of the two models' configs alone."""
    findings = []
    eight = config.loads_teacher and config.teacher_bits == 8
    for role, model_config, unpacked in (("student", student, config.student_bits == 4), ("teacher", teacher, eight)):
        if unpacked and is_mixture(model_config):
            model = empty_model(model_config, torch.bfloat16, config.trust_remote_code)
            if names := fused_experts(model):
                size, bits = experts_gib(model), getattr(config, f"{role}_bits")
                found = f"{called(config, role)} has {len(names)} fused parameters of experts, {size:.1f} GiB in 16 bits, which "
                found += f"{role}_bits {bits} would leave as they are"
                mend = f"type --{role}-bits {'16' if role == 'student' else '4 or 16'}"
                evidence = {"parameters": len(names), "gib": size}
                findings.append(Finding("refusal", f"{role}'s experts", found, mend, evidence))
    return findings
