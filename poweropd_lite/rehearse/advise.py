"""One advice: the student's rollouts scored once, replayed through every reward, and the gradients of a few batches."""

from contextlib import closing
from dataclasses import replace

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.progress import Counting
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.models.teacher import SelfTeacher, load_teacher
from poweropd_lite.rehearse.advise_report import Advice, Row, judge, numbers, screen
from poweropd_lite.rehearse.gradients import check_room, compare_gradients
from poweropd_lite.rehearse.pictures import draw_advice
from poweropd_lite.rehearse.report import Check, about
from poweropd_lite.rehearse.scored import (
    draw,
    log_probs,
    objective_of,
    prepare_to_score,
    reward_configs,
    rewards,
    score_student,
)
from poweropd_lite.rehearse.settings import AdviseConfig
from poweropd_lite.rehearse.stats import by_decile, places, reward_facts, truncation, truncation_push
from poweropd_lite.rewards.table import REWARDS, reward_of
from poweropd_lite.run.session import load_sampler

OTHERS = tuple(name for name in REWARDS if name != "power")  # compared beside the power reward
TRUNCATIONS = ((20, 0.95), (20, 1.0), (0, 0.95))  # top-k, top-p: the released code's, and each of the two alone


def measure(config: Config, settings: AdviseConfig, pace: Counting) -> Advice:
    size, wanted = config.batch_size, settings.gradient_steps
    if (full := settings.rollouts // size) < wanted:
        raise UserError(
            f"the gradients of {wanted} batches of {size} rollouts are compared, and {settings.rollouts} rollouts make "
            f"{full}; type --rollouts {wanted * size}, a smaller --batch-size, or --gradient-steps 2"
        )
    ready = prepare_to_score(config, pace.say)
    replayed = reward_configs(ready.config, *OTHERS)
    with_ref = any("log_ref" in reward_of(reward.reward).needs for reward in replayed.values())
    student, engine = load_sampler(ready, pace.say)
    with closing(engine):
        check_room(student, wanted)
        drawn = draw(ready, engine, settings.rollouts, pace)
        batches = zip(drawn.steps, drawn.sizes, strict=True)
        steps = [rollouts for rollouts, tokens in batches if tokens and len(rollouts) == size]
        if len(steps) < wanted:
            raise UserError(
                f"in {full - len(steps)} of {full} batches every rollout is a masked stop token alone, so fewer than "
                f"{wanted} have a gradient; type --stop-mode raw, or more --rollouts"
            )
        cuts = [replace(ready.objective.sampling, temperature=1.0, top_k=k, top_p=p) for k, p in TRUNCATIONS]
        samplings = {_name(s): s for s in (ready.objective.sampling, *cuts)}
        log_q, pull, facts = score_student(ready, drawn, student, list(samplings.values()), pace)
        of_teacher = config.teacher, config.teacher_bits, ready.device, ready.dtype, config.trust_remote_code
        teacher = load_teacher(*of_teacher, offload=config.teacher_offload)
        log_p = log_probs(ready, drawn, teacher, "teacher", f"{config.teacher_bits}-bit teacher", pace).double()
        if not (log_p.isfinite().all() and log_q.isfinite().all()):
            raise UserError("student or teacher gives log-probs that are not finite numbers; is the download whole?")
        compared = steps[:wanted]
        gradients, minus = compare_gradients(ready, student, teacher, compared, replayed, pace)
        ref = (
            log_probs(ready, drawn, SelfTeacher(student), "student", "student, adapter off", pace) if with_ref else None
        )
    own_pull = facts[:, 0, 3] if config.score == "sampled" else pull
    ratio, place, live = log_p - log_q.double(), places(drawn.lengths), settings.live_reward
    paid, rows = {}, dict[str, Row]()
    for name, reward in replayed.items():
        if name in minus:
            row = reward_facts(minus[name], None, None, live) | {"by_decile": None}
        else:
            paid[name] = rewards(
                objective_of(reward, ready.objective), log_p.float(), log_q, drawn.sizes, ref, config.seed
            )
            row = reward_facts(paid[name], own_pull, ratio, live)
            row["by_decile"] = by_decile(paid[name], own_pull, ratio, place, live)
        row |= {"reward": reward.reward, "alpha": reward.alpha if reward.reward == "power" else None}
        row["sparse"] = row["live_share"] < settings.few_live_share
        row["heavy"] = (row["top_gradient"] or 0.0) > settings.heavy_share
        norms = gradients[name]["norm"]
        mean_norm = None if None in norms else sum(norms) / len(norms)
        rows[name] = row | {"mean_norm": mean_norm, "gradient": gradients[name]}
    cut = {}
    for k, (name, sampling) in enumerate(samplings.items()):
        mass, kept, bias, _ = facts[:, k].unbind(-1)
        at = {"top_k": sampling.top_k, "top_p": sampling.top_p, "temperature": sampling.temperature}
        push = {reward: truncation_push(r, pull, kept, bias) for reward, r in paid.items()}
        cut[name] = at | truncation(mass, kept, bias) | {"full_score_push": push}
    report: Advice = {
        **about(config, settings, ready, drawn, ready.config.reward_label),
        "sampling": next(iter(samplings)),
        "gradient_rollouts": sum(map(len, compared)),
        "rewards": rows,
        "truncations": cut,
    }
    report["verdict"] = judge(report)
    return report


ADVISE = Check("advise", "advice", measure, screen, numbers, draw_advice)


def _name(sampling: Sampling) -> str:
    parts = [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"temperature {sampling.temperature:g}"] if sampling.temperature != 1 else []
    return ", ".join(parts) or "untruncated"
