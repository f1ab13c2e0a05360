"""One audit: the student's rollouts scored by the teacher in every precision, one model after the other."""

import gc
from contextlib import closing
from typing import Literal

import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import is_out_of_memory
from poweropd_lite.base.progress import Counting
from poweropd_lite.method.update import Objective
from poweropd_lite.models.loading import load_model_config
from poweropd_lite.models.offload import GIB, Places, layer_map, placing, streamed
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.rehearse.audit_report import AuditReport, Candidate, Row, judge, numbers, screen
from poweropd_lite.rehearse.pictures import draw_audit
from poweropd_lite.rehearse.report import Check, about
from poweropd_lite.rehearse.scored import (
    Drawn,
    draw,
    log_probs,
    objective_of,
    prepare_to_score,
    reward_configs,
    rewards,
)
from poweropd_lite.rehearse.settings import AuditConfig
from poweropd_lite.rehearse.stats import intervals, log_prob_error, reward_error
from poweropd_lite.rewards.table import reward_of
from poweropd_lite.run.session import Prepared, load_sampler

Pair = tuple[Tensor, Tensor]  # log p and log q, each [N]


def measure(config: Config, settings: AuditConfig, pace: Counting) -> AuditReport:
    """Returns the report: models are loaded, score and are freed one after the other."""
    model_config, _ = load_model_config(config.teacher, "teacher", config.trust_remote_code)
    if getattr(model_config, "quantization_config", None):
        raise UserError(
            f"the files of the teacher {config.teacher} are quantised already, so there is no full precision to "
            "compare with; type --teacher with the model that it was made from"
        )
    # PEFT loads the students: Unsloth would change the second one's classes for the first. No score is used.
    ready = prepare_to_score(changed(config, loader="peft", score="full"), pace.say)
    judged = ready.config
    entry = reward_of(judged.reward)
    if entry.pay is None or {"log_ref", "noise"} & {*entry.needs}:
        own = judged.reward == "full_kl"
        why = (
            "whose mean over the student's own tokens it is" if own else "for it is no reward of log p and log q alone"
        )
        pace.say(f"{judged.reward} is judged by log_ratio, {why}")
        judged = changed(judged, reward="log_ratio", reward_settings={})
    replayed = reward_configs(judged)
    room = None if settings.reference_gib is None else settings.reference_gib * GIB
    find_places(ready, 32, room)  # what can't be planned is refused before anything is scored
    drawn, students = score_students(ready, settings, pace)
    log_q = students.get(torch.float32, students[ready.dtype])
    reference, streamed = score_teacher(ready, 32, room, drawn, pace)
    if not reference.isfinite().all():
        what = f"the full-precision teacher {config.teacher} gives log-probs that are not finite numbers"
        raise UserError(f"{what}, so there is nothing to compare with; is the download whole?")

    def candidate(model: Literal["teacher", "student"], bits: int, log_p: Tensor, log_q_too: Tensor) -> Candidate:
        error = log_prob_error(reference, log_p) if model == "teacher" else log_prob_error(log_q, log_q_too)
        pairs = (reference, log_q), (log_p, log_q_too)
        rows = {label: compare(reward, *pairs, drawn, settings) for label, reward in replayed.items()}
        return {"model": model, "bits": bits, "log_prob_error": error, "rewards": rows}

    candidates, missing = dict[str, Candidate](), dict[str, str]()
    for bits in sorted({4, 8, 16, config.teacher_bits}):
        name = f"{bits}-bit teacher"
        free(ready.device)  # of a try before this one that failed, too
        try:
            log_p = reference if bits == 32 else score_teacher(ready, bits, room, drawn, pace)[0]
        except (UserError, RuntimeError, ImportError, ValueError, AssertionError, MemoryError) as error:
            text, out_of_memory = " ".join(str(error).split())[:200], is_out_of_memory(error)
            missing[name] = f"{'no memory for it here' if out_of_memory else 'it does not run here'} ({text})"
            if bits == config.teacher_bits:
                if not out_of_memory:
                    raise
                ways = "--teacher-bits 4, or " * (bits > 4)
                raise UserError(f"{name}: {missing[name]}; type {ways}a smaller --teacher") from None
            continue
        if bad := int((~log_p.isfinite()).sum()):
            missing[name] = f"{bad} of its {len(log_p)} log-probs are not finite numbers"
        else:
            candidates[name] = candidate("teacher", bits, log_p, log_q)
    half = torch.bfloat16 if ready.dtype == torch.float32 else ready.dtype
    name = f"student {_name(half)}"
    if len(students) == 2:
        candidates[name] = candidate("student", 16, reference, students[half])
    else:
        missing[name] = f"no memory for a second student beside the one in {_name(ready.dtype)}"
    if not candidates:
        raise UserError("no precision of teacher or student could be compared: " + "; ".join(missing.values()))
    report: AuditReport = {
        **about(config, settings, ready, drawn, judged.reward_label),
        "reference": {"bits": 32, "streamed_layers": streamed},
        "candidates": candidates,
        "not_audited": missing,
    }
    report["verdict"] = judge(report)
    return report


AUDIT = Check("audit", "audits", measure, screen, numbers, draw_audit)


def score_students(ready: Prepared, settings: AuditConfig, pace: Counting) -> tuple[Drawn, dict[torch.dtype, Tensor]]:
    """Returns the rollouts and log q of their tokens [N]: by the run's own student, and by one in float32 or bfloat16.

    The second is missing where it does not fit in memory.
    """
    student, engine = load_sampler(ready, pace.say)
    with closing(engine):
        drawn = draw(ready, engine, settings.rollouts, pace)
        scores = {ready.dtype: log_probs(ready, drawn, student, "student", f"student {_name(ready.dtype)}", pace)}
    del student, engine
    free(ready.device)
    other = torch.bfloat16 if ready.dtype == torch.float32 else torch.float32
    try:
        student = load_student(ready.config, ready.device, other, "peft")
        scores[other] = log_probs(ready, drawn, student, "student", f"student {_name(other)}", pace)
        del student
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free(ready.device)
    if not all(values.isfinite().all() for values in scores.values()):
        raise UserError(f"the student {ready.config.student} gives log-probs that are not finite numbers")
    return drawn, scores


def score_teacher(ready: Prepared, bits: int, room: float | None, drawn: Drawn, pace: Counting) -> tuple[Tensor, int]:
    """Returns log p [N] by the teacher in `bits`, and its streamed layers: in 16 and 32 bits, beyond `room` bytes."""
    name, remote_code, places = ready.config.teacher, ready.config.trust_remote_code, find_places(ready, bits, room)
    away, teacher = streamed(places, ready.device), None
    try:
        with placing(places, ready.device) as options:
            offload = ready.config.teacher_offload and bits == 4  # 16 and 32 bits are placed, 8 stand on the device
            teacher = load_teacher(name, bits, ready.device, ready.dtype, remote_code, offload, **options)
            if away:
                pace.say(f"{away} layers of the {bits}-bit teacher are streamed: they don't fit on the device")
            return log_probs(ready, drawn, teacher, "teacher", f"{bits}-bit teacher", pace), away
    finally:
        teacher = None
        free(ready.device)


def find_places(ready: Prepared, bits: int, room: float | None) -> Places:
    """Returns where the teacher's layers go: in 16 and 32 bits those that `room` bytes don't hold are streamed."""
    if bits < 16:
        return {}
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    return layer_map(ready.config.teacher, ready.device, dtype, room, ready.config.trust_remote_code)


def compare(config: Config, reference: Pair, candidate: Pair, drawn: Drawn, settings: AuditConfig) -> Row:
    """Returns the errors of the config's reward."""
    objective = objective_of(config, Objective(config.reward))
    r, s = (rewards(objective, *pair, drawn.sizes) for pair in (reference, candidate))
    error, alpha = reward_error(r, s), config.alpha if config.reward == "power" else None
    between = intervals(r, s, drawn.lengths, settings.resamples, config.seed)
    flipped, correlation = error["flipped_mass"], error["correlation"]
    within = flipped is not None and flipped <= settings.max_flipped_mass
    passes = within and correlation is not None and correlation >= settings.min_correlation
    return {"reward": config.reward, "alpha": alpha, **error, "interval": between, "passes": passes}


def free(device: torch.device) -> None:
    """Gives the memory of a model that was let go back to the card."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
