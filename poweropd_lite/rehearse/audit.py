"""One audit: the student's rollouts scored by the teacher in every precision, one model after the other."""

import gc
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.rehearse.command import Check, make_report
from poweropd_lite.rehearse.settings import AuditConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from poweropd_lite.rehearse.scored import Drawn, Pace
    from poweropd_lite.run.session import Prepared


def audit(
    config: Config, audit_config: AuditConfig | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Compares the teacher's precisions, writes the report's folder and returns the report (docs/audit.md).

    Raises UserError for what the user can mend, and scored.Stopped, a KeyboardInterrupt, when a signal came.
    """
    from poweropd_lite.rehearse.audit_picture import draw_audit
    from poweropd_lite.rehearse.audit_words import markdown, screen

    check = Check("audit", "audits", measure, screen, markdown, draw_audit)
    return make_report(check, config, audit_config or AuditConfig(), say)


def measure(config: Config, settings: AuditConfig, pace: "Pace") -> dict[str, Any]:
    """Returns the report: models are loaded, score and are freed one after the other."""
    from poweropd_lite.base.memory import is_out_of_memory
    from poweropd_lite.rehearse.audit_words import judge
    from poweropd_lite.rehearse.scored import label, prepare_to_score, reward_configs

    refuse_quantised(config)
    # PEFT loads the students: the second one would be of the classes that Unsloth changed for the first. No score is used.
    ready = prepare_to_score(config.model_copy(update={"loader": "peft", "score": "full"}), pace.say)
    judged = ready.config
    if judged.reward == "full_kl":
        pace.say("full_kl is judged by log_ratio, whose mean over the student's own tokens it is")
        judged = judged.model_copy(update={"reward": "log_ratio"})
    replayed = reward_configs(judged)
    find_places(ready, 32, settings.reference_gib)  # what can't be planned is refused before anything is scored
    drawn, log_q, half_q, half, missing = score_students(ready, settings, pace)
    reference, streamed = score_teacher(ready, 32, settings.reference_gib, drawn, pace)
    if not reference.isfinite().all():
        raise UserError(
            f"the full-precision teacher {config.teacher} gives log-probs that are not finite numbers, so there is nothing to "
            "compare with; is the download whole?"
        )
    candidates = {}
    if half_q is not None:
        both = (reference, log_q), (reference, half_q)
        candidates[f"student {half}"] = compare(replayed, drawn, settings, config.seed, *both)
    for bits in sorted({4, 8, 16, config.teacher_bits}):
        name = f"{bits}-bit teacher"
        free(ready.device)  # of a try before this one that failed, too
        try:
            log_p = reference if bits == 32 else score_teacher(ready, bits, settings.reference_gib, drawn, pace)[0]
        except (UserError, RuntimeError, ImportError, ValueError, AssertionError, MemoryError) as error:
            if bits == config.teacher_bits and is_out_of_memory(error):
                raise UserError(
                    f"{name}: {_why_not(error)}; type {'--teacher-bits 4, or ' if bits > 4 else ''}a smaller --teacher"
                ) from None
            if bits == config.teacher_bits:
                raise
            missing[name] = _why_not(error)
            continue
        if bad := int((~log_p.isfinite()).sum()):
            missing[name] = f"{bad} of its {len(log_p)} log-probs are not finite numbers"
            continue
        candidates[name] = compare(replayed, drawn, settings, config.seed, (reference, log_q), (log_p, log_q))
    if not candidates:
        raise UserError("no precision of teacher or student could be compared: " + "; ".join(missing.values()))
    report = {
        "student": config.student,
        "teacher": config.teacher,
        "reward": label(judged),
        "teacher_bits": config.teacher_bits,
        "device": ready.device.type,
        "dtype": _name(ready.dtype),
        "rollouts": drawn.count,
        "tokens": sum(drawn.lengths),
        "reference": {"bits": 32, "streamed_layers": streamed},
        "candidates": candidates,
        "not_audited": missing,
        "settings": settings.model_dump(),
        "config": config.model_dump(),
    }
    return report | {"verdict": judge(report)}


def refuse_quantised(config: Config) -> None:
    """Raises UserError for a teacher whose files are quantised already: there is no full precision to compare with."""
    from poweropd_lite.models.loading import load_model_config

    model_config, _ = load_model_config(config.teacher, "teacher", config.trust_remote_code)
    if getattr(model_config, "quantization_config", None):
        raise UserError(
            f"the files of the teacher {config.teacher} are quantised already, so there is no full precision to compare with; "
            "type --teacher with the model that it was made from"
        )


def score_students(
    ready: "Prepared", settings: AuditConfig, pace: "Pace"
) -> "tuple[Drawn, Tensor, Tensor | None, str, dict[str, str]]":
    """Returns the rollouts, log q of their tokens [N] in float32 and in half precision, the latter's name, and what is missing.

    The half precision is the run's own, or bfloat16 where it computes in float32. Where the float32 student does not fit beside
    nothing, the run's own log q stands for both.
    """
    import torch

    from poweropd_lite.base.memory import is_out_of_memory
    from poweropd_lite.models.student import load_student
    from poweropd_lite.rehearse.scored import draw, log_probs
    from poweropd_lite.run.session import load_sampler

    student, engine = load_sampler(ready, pace.say)
    half = torch.bfloat16 if ready.dtype == torch.float32 else ready.dtype
    with closing(engine):
        drawn = draw(ready, engine, settings.rollouts, pace)
        scores = {ready.dtype: log_probs(ready, drawn, student, "student", f"student {_name(ready.dtype)}", pace)}
    del student, engine
    other = half if ready.dtype == torch.float32 else torch.float32
    free(ready.device)
    missing: dict[str, str] = {}
    try:
        student = load_student(ready.config, ready.device, other, "peft")
        scores[other] = log_probs(ready, drawn, student, "student", f"student {_name(other)}", pace)
        del student
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        missing[f"student {_name(half)}"] = f"no memory for a student in {_name(other)} beside it"
    free(ready.device)
    if not all(values.isfinite().all() for values in scores.values()):
        raise UserError(f"the student {ready.config.student} gives log-probs that are not finite numbers")
    log_q = scores.get(torch.float32, scores[ready.dtype])
    return drawn, log_q, None if missing else scores[half], _name(half), missing


def find_places(ready: "Prepared", bits: int, room_gib: float | None) -> dict[str, str | int] | None:
    """Returns where the teacher's layers go in 16 or 32 bits (offload.layer_map); None for bits that are not streamed."""
    import torch

    from poweropd_lite.models.offload import GIB, layer_map

    if bits not in (16, 32):
        return None
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    return layer_map(ready.config, ready.device, dtype, None if room_gib is None else room_gib * GIB)


def score_teacher(
    ready: "Prepared", bits: int, room_gib: float | None, drawn: "Drawn", pace: "Pace"
) -> "tuple[Tensor, int]":
    """Returns log p [N] of the teacher in `bits`, and how many layers were streamed (in 16 and 32 bits, where it does not fit)."""
    from poweropd_lite.models.teacher import load_scorer
    from poweropd_lite.rehearse.scored import log_probs

    config = ready.config.model_copy(update={"teacher_bits": bits})
    try:
        teacher = load_scorer(config, ready.device, ready.dtype, find_places(ready, bits, room_gib))
        if teacher.streamed:
            pace.say(f"{teacher.streamed} layers of the {bits}-bit teacher are streamed: they don't fit on the device")
        return log_probs(ready, drawn, teacher, "teacher", f"{bits}-bit teacher", pace), teacher.streamed
    finally:
        teacher = None
        free(ready.device)


def _why_not(error: BaseException) -> str:
    from poweropd_lite.base.memory import is_out_of_memory

    text = " ".join(str(error).split())[:200]
    return f"no memory for it here ({text})" if is_out_of_memory(error) else f"it does not run here ({text})"


def compare(
    replayed: dict[str, Config],
    drawn: "Drawn",
    settings: AuditConfig,
    seed: int,
    reference: "tuple[Tensor, Tensor]",
    candidate: "tuple[Tensor, Tensor]",
) -> dict[str, Any]:
    """Returns the errors of one candidate: of its log-probs, and of each reward. Both are (log p, log q), one of them shared."""
    from poweropd_lite.rehearse.audit_stats import intervals, log_prob_error, reward_error
    from poweropd_lite.rehearse.scored import rewards

    side = 1 if candidate[0] is reference[0] else 0
    out: dict[str, Any] = {"log_prob_error": log_prob_error(reference[side], candidate[side]), "rewards": {}}
    for name, config in replayed.items():
        r, s = (rewards(config, *pair, drawn.sizes) for pair in (reference, candidate))
        numbers = reward_error(r, s)
        numbers["interval"] = intervals(r, s, drawn.lengths, settings.resamples, seed)
        out["rewards"][name] = numbers
    return out


def free(device: "torch.device") -> None:
    """Gives the memory of a model that was let go back to the card."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
