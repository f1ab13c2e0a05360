"""One advice: the student's rollouts scored once, replayed through every reward, and the gradients of a few batches."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.rehearse.command import Check, make_report
from poweropd_lite.rehearse.settings import AdviseConfig

if TYPE_CHECKING:
    from torch import Tensor

    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.models.student import Student
    from poweropd_lite.rehearse.scored import Drawn, Pace
    from poweropd_lite.run.session import Prepared

OTHERS = ("log_ratio", "clip", "tanh", "zscore", "full_kl")  # compared beside the power reward
TRUNCATIONS = ((20, 0.95), (20, 1.0), (0, 0.95))  # top-k, top-p: the released code's, and each of the two alone


def advise(
    config: Config, advise_config: AdviseConfig | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Compares the rewards, writes the report's folder and returns the report (docs/advise.md).

    Raises UserError for what the user can mend, and scored.Stopped, a KeyboardInterrupt, when a signal came.
    """
    from poweropd_lite.rehearse.advise_picture import draw_advice
    from poweropd_lite.rehearse.advise_words import markdown, screen

    check = Check("advise", "advice", measure, screen, markdown, draw_advice)
    return make_report(check, config, advise_config or AdviseConfig(), say)


def measure(config: Config, settings: AdviseConfig, pace: "Pace") -> dict[str, Any]:
    """Returns the report."""
    from poweropd_lite.models.teacher import load_teacher
    from poweropd_lite.rehearse.advise_stats import by_decile, places, reward_facts, truncation, truncation_push
    from poweropd_lite.rehearse.advise_words import judge
    from poweropd_lite.rehearse.gradients import check_room, compare_gradients
    from poweropd_lite.rehearse.scored import draw, label, log_probs, prepare_to_score, reward_configs, rewards
    from poweropd_lite.run.session import load_sampler

    if (full := settings.rollouts // config.batch_size) < settings.gradient_steps:
        raise UserError(
            f"the gradients of {settings.gradient_steps} batches of {config.batch_size} rollouts are compared, and {settings.rollouts} rollouts make "
            f"{full}; type --rollouts {settings.gradient_steps * config.batch_size}, a smaller --batch-size, or --gradient-steps 2"
        )
    ready = prepare_to_score(config, pace.say)
    replayed = reward_configs(ready.config, *OTHERS)
    student, engine = load_sampler(ready, pace.say)
    with closing(engine):
        check_room(student, settings.gradient_steps)
        drawn = draw(ready, engine, settings.rollouts, pace)
        batches = zip(drawn.steps, drawn.sizes, strict=True)
        steps = [rollouts for rollouts, size in batches if size and len(rollouts) == config.batch_size]
        if len(steps) < settings.gradient_steps:
            raise UserError(
                f"in {full - len(steps)} of {full} batches every rollout is a masked stop token alone, so fewer than {settings.gradient_steps} "
                "have a gradient; type --stop-mode raw, or more --rollouts"
            )
        samplings = {_sampling_name(s): s for s in (ready.objective.sampling, *_truncations(ready.objective.sampling))}
        log_q, pull, facts = score_student(ready, drawn, student, list(samplings.values()), pace)
        teacher = load_teacher(ready.config, ready.device, ready.dtype)
        log_p = log_probs(ready, drawn, teacher, "teacher", f"{config.teacher_bits}-bit teacher", pace).double()
        if not (log_p.isfinite().all() and log_q.isfinite().all()):
            raise UserError("student or teacher gives log-probs that are not finite numbers; is the download whole?")
        compared = steps[: settings.gradient_steps]
        gradients, minus_kl = compare_gradients(ready, student, teacher, compared, replayed, pace)
    own_pull = facts[:, 0, 3] if config.score == "sampled" else pull
    ratio, place, live = log_p - log_q.double(), places(drawn.lengths), settings.live_reward
    rows: dict[str, dict[str, Any]] = {}
    paid: dict[str, Tensor] = {}
    for name, reward in replayed.items():
        if name == "full_kl":
            row = reward_facts(minus_kl, None, None, live) | {"by_decile": None}
        else:
            paid[name] = rewards(reward, log_p.float(), log_q, drawn.sizes)
            row = reward_facts(paid[name], own_pull, ratio, live)
            row["by_decile"] = by_decile(paid[name], own_pull, ratio, place, live)
        rows[name] = row | {"gradient": gradients[name]}
    cut = {}
    for k, (name, sampling) in enumerate(samplings.items()):
        mass, kept, bias, _ = facts[:, k].unbind(-1)
        push = {reward: truncation_push(r, pull, kept, bias) for reward, r in paid.items()}
        at = {"top_k": sampling.top_k, "top_p": sampling.top_p, "temperature": sampling.temperature}
        cut[name] = at | truncation(mass, kept, bias) | {"full_score_push": push}
    report = {
        "student": config.student,
        "teacher": config.teacher,
        "teacher_bits": config.teacher_bits,
        "reward": label(ready.config),
        "score": config.score,
        "sampling": next(iter(samplings)),
        "device": ready.device.type,
        "dtype": str(ready.dtype).removeprefix("torch."),
        "rollouts": drawn.count,
        "tokens": len(log_q),
        "gradient_rollouts": sum(map(len, compared)),
        "rewards": rows,
        "truncations": cut,
        "settings": settings.model_dump(),
        "config": config.model_dump(),
    }
    return report | {"verdict": judge(report)}


def score_student(
    ready: "Prepared", drawn: "Drawn", student: "Student", samplings: "list[Sampling]", pace: "Pace"
) -> "tuple[Tensor, Tensor, Tensor]":
    """Returns log q [N], and as float64 what truncation_facts says: [N] and [N, K, 4] for K samplings."""
    import torch

    from poweropd_lite.method.logprobs import Sampling, score_tokens
    from poweropd_lite.method.update import over_tokens
    from poweropd_lite.rehearse.scored import by_step
    from poweropd_lite.rehearse.truncation import truncation_facts

    def facts(hidden: "Tensor", batch: Any) -> "Tensor":
        log_q = score_tokens(hidden, student.head, batch.student_ids, Sampling(), "full").logprob
        pull, cut = truncation_facts(hidden, student.head, batch.student_ids, samplings)
        return torch.cat([log_q[:, None], pull[:, None], cut.flatten(1)], -1)

    columns = 2 + 4 * len(samplings)
    found = by_step(ready, drawn, lambda batches, n: over_tokens(student, batches, n, facts, columns), "student", pace)
    return found[:, 0], found[:, 1].double(), found[:, 2:].double().unflatten(-1, (-1, 4))


def _truncations(sampling: "Sampling") -> "list[Sampling]":
    return [replace(sampling, temperature=1.0, top_k=k, top_p=p) for k, p in TRUNCATIONS]


def _sampling_name(sampling: "Sampling") -> str:
    parts = [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"temperature {sampling.temperature:g}"] if sampling.temperature != 1 else []
    return ", ".join(parts) or "untruncated"
