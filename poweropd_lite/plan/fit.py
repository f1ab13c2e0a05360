"""The smallest change that makes a run fit: settings lowered one step at a time, the harmless ones first.

A phase that is too large is met by its own setting, which changes how a step is cut and not what it computes: fewer
completions at once, smaller micro-batches. Only when these are used up come the changes that a result may show, in the
order of `LAST_RESORTS`.
"""

from collections.abc import Callable
from typing import Any

import yaml

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.cli import as_flags
from poweropd_lite.plan.memory import GIB, MemoryPlan

Values = dict[str, Any]  # settings to change
Change = Callable[[Config], Values]  # one step further with a setting; nothing where it is used up
LOWEST_RANK, SHORTEST = 8, 256
LEAST_GAIN = 0.005  # of the phase that is too large; a change that saves less is not worth making


def fit(
    config: Config,
    limit: int,
    plan: Callable[[Config], MemoryPlan],
    say: Callable[[str], None],
    runs: Callable[[Config], bool] = lambda config: True,
) -> Config | None:
    """Returns a config that needs at most `limit` bytes and `runs` on the machine; None if nothing here is enough."""
    asked, found = config, plan(config)
    theirs = found.teacher.offloaded_bytes(4)[0] if found.teacher.layer else found.teacher.weight_bytes(4)
    least = (theirs if config.loads_teacher else 0) + found.student.shape.weight_bytes(4) + found.runtime
    if least > limit:
        return None
    useless: set[tuple[str, Change]] = set()  # a setting that did not help a phase
    while found.needed > limit:
        steps = (s for s in _steps(config, found) if (found.peak_phase, s[0]) not in useless and runs(s[1]))
        if (step := next(steps, None)) is None:
            return None
        change, smaller = step
        trying = as_flags({name: after for name, (_, after) in differences(config, smaller).items()})
        say(f"needs {found.needed / GIB:.1f} GiB ({found.peak_phase}); trying {trying}")
        then, phase = plan(smaller), found.peak_phase
        # By its own phase: another one as large is met at its turn, and what proves needless is put back at the end.
        if then.total(phase) > (1 - LEAST_GAIN) * found.total(phase):
            useless.add((phase, change))
            continue
        config, found = smaller, then
    return _restored(asked, config, limit, plan)


def _restored(asked: Config, config: Config, limit: int, plan: Callable[[Config], MemoryPlan]) -> Config:
    """Returns `config` with every setting put back that need not be changed, those that matter most first."""
    for names in RESTORED_FIRST:
        values = {name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(config, name)}
        try:
            if values and plan(before := changed(config, **values)).needed <= limit:
                config = before
        except UserError:  # what is put back does not go with what is not
            continue
    return config


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Returns what was changed: the setting, its value before, and after."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Config.model_fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _steps(config: Config, plan: MemoryPlan) -> list[tuple[Change, Config]]:
    """Returns the next step of every setting that may help and is not used up, the least harmful first."""
    engine = (_fewer_lines, _built_in_loop) if {"engine", "vLLM"} & set(plan.phases[plan.peak_phase]) else ()
    steps = []
    for change in dict.fromkeys((*OWN[plan.peak_phase], *engine, *LAST_RESORTS)):
        try:
            if values := change(config):
                steps.append((change, changed(config, **values)))
        except UserError:  # a combination that config.py refuses
            continue
    return steps


def _fewer_answers(config: Config) -> Values:
    """Half of the answers that are really decoded at once in evaluation."""
    answers = min(config.eval_batch_size, config.decode_batch_size or config.eval_batch_size)
    return {"eval_batch_size": answers // 2} if answers > 1 else {}


def _fewer_lines(config: Config) -> Values:
    """Half of the completions that are really decoded at once, in a step or in evaluation."""
    most = max(config.batch_size, config.eval_batch_size) if config.evaluates else config.batch_size
    lines = min(config.decode_batch_size or most, most)
    return {"decode_batch_size": lines // 2} if lines > 1 else {}


def _built_in_loop(config: Config) -> Values:
    return {"engine": "loop"} if config.engine != "loop" else {}


def _smaller_batches(config: Config) -> Values:
    """Half of the tokens that a micro-batch really can have."""
    least, changes = config.max_prompt_tokens + config.max_new_tokens, {}
    own = {"teacher_token_budget": config.teacher_tokens_at_once} if config.sizes["teacher_token_budget"] else {}
    for name, tokens in {"token_budget": config.tokens_at_once, **own}.items():
        if (budget := min(tokens, config.batch_size * least)) > least:
            changes[name] = max(least, budget // 2)
    return changes


def _lower_rank(config: Config) -> Values:
    if config.full_finetune or config.adapter is not None or config.lora_rank <= LOWEST_RANK:
        return {}
    rank = max(LOWEST_RANK, config.lora_rank // 2)
    return {"lora_rank": rank, "lora_alpha": config.lora_alpha * rank / config.lora_rank}


def _half_of(name: str) -> Change:
    return lambda c: {name: max(SHORTEST, getattr(c, name) // 2)} if getattr(c, name) > SHORTEST else {}


OWN: dict[str, tuple[Change, ...]] = {
    "evaluate": (_fewer_answers, _fewer_lines),
    "rollout": (_fewer_lines,),
    "score": (_smaller_batches,),
    "update": (lambda c: {} if c.recomputes else {"gradient_checkpointing": True}, _smaller_batches),
    "optimizer": (),
    "load": (),
}
LAST_RESORTS: tuple[Change, ...] = (
    lambda c: {"teacher_bits": 4} if c.teacher_bits > 4 and c.loads_teacher else {},
    lambda c: {"optimizer": "adamw8bit"} if c.full_finetune and c.optimizer == "adamw" else {},
    lambda c: {"teacher_offload": True} if c.loads_teacher and not c.teacher_offload else {},
    _half_of("max_prompt_tokens"),
    _lower_rank,
    lambda c: {"student_bits": 4, "engine": "loop"} if c.student_bits > 4 else {},  # vLLM samples from 16-bit weights
    _half_of("max_new_tokens"),
    lambda c: {"full_finetune": False, "lr": None} if c.full_finetune else {},
)
RESTORED_FIRST = (
    ("max_new_tokens",), ("student_bits",), ("lora_rank", "lora_alpha"), ("max_prompt_tokens",), ("optimizer",),
    ("teacher_bits",), ("teacher_offload",), ("token_budget", "teacher_token_budget"), ("engine",), ("gradient_checkpointing",), ("decode_batch_size",),
    ("eval_batch_size",),
)  # fmt: skip


def config_text(config: Config, comment: str) -> str:
    """Returns a config file with what differs from the defaults, below a comment line."""
    default = {name: field.default for name, field in Config.model_fields.items()}
    values = {name: value for name, value in config.model_dump().items() if value != default[name]}
    # A file that names no models would be one on top of the bundled pair.
    values = {"student": config.student, "teacher": config.teacher} | values
    return f"# {comment}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
