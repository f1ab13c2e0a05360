"""The smallest change that makes a run fit: settings lowered one step at a time, the harmless ones first.

A phase that is too large is met by its own setting, which changes how a step is cut and not what it computes: fewer
completions at once, smaller micro-batches. Only when these are used up come the changes that a result may show, in the order
of `LAST_RESORTS`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config

if TYPE_CHECKING:
    from poweropd_lite.plan.memory import MemoryPlan

GIB = 2**30
LOWEST_RANK, SHORTEST = 8, 256
LEAST_GAIN = 0.005  # of the phase that is too large; a change that saves less is not worth making


def fit(
    config: Config,
    limit: int,
    plan: "Callable[[Config], MemoryPlan]",
    say: "Callable[[str], None]",
    runs: "Callable[[Config], bool]" = lambda config: True,
) -> Config | None:
    """Returns a config that needs at most `limit` bytes and `runs` on the machine; None where nothing here is enough."""
    asked, found = config, plan(config)
    least = found.teacher.weight_bytes(4) + found.student.shape.weight_bytes(4) + found.runtime
    if least > limit:
        return None
    useless: set[tuple[str, Callable]] = set()  # a setting that did not help a phase
    while found.needed > limit:
        steps = (s for s in _steps(config, found) if (found.peak_phase, s[0]) not in useless and runs(s[1]))
        step = next(steps, None)
        if step is None:
            return None
        change, changed = step
        say(f"needs {found.needed / GIB:.1f} GiB ({found.peak_phase}); trying {describe(differences(config, changed))}")
        then, phase = plan(changed), found.peak_phase
        # By its own phase: another one as large is met at its turn, and what proves needless is put back at the end.
        if then.total(phase) > (1 - LEAST_GAIN) * found.total(phase):
            useless.add((phase, change))
            continue
        config, found = changed, then
    return _restored(asked, config, limit, plan)


def _restored(asked: Config, config: Config, limit: int, plan: "Callable[[Config], MemoryPlan]") -> Config:
    """Returns `config` with every setting put back that need not be changed, those that matter most first."""
    for names in RESTORED_FIRST:
        values = {name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(config, name)}
        before = _with(config, **values) if values else None
        if before is not None and plan(before).needed <= limit:
            config = before
    return config


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Returns what was changed: the setting, its value before, and after."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Config.model_fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def describe(changes: dict[str, tuple[Any, Any]]) -> str:
    """Returns changes as flags."""
    flags = []
    for name, (_, value) in changes.items():
        flag = "--" + name.replace("_", "-")
        flags.append(
            f"{flag if value else flag.replace('--', '--no-', 1)}"
            if isinstance(value, bool)
            else f"{flag} {value:g}"
            if isinstance(value, float)
            else f"{flag} {value}"
        )
    return " ".join(flags)


def _steps(config: Config, plan: "MemoryPlan") -> "list[tuple[Callable, Config]]":
    """Returns the next step of every setting that may help and is not used up, the least harmful first."""
    own = {
        "evaluate": [_fewer_answers, _fewer_lines],
        "rollout": [_fewer_lines],
        "score": [_smaller_batches],
        "update": [_checkpointing, _smaller_batches],
        "optimizer": [],
        "load": [],
    }
    phase = plan.peak_phase
    engine = [_fewer_lines, _built_in_loop] if {"engine", "vLLM"} & set(plan.phases[phase]) else []
    changes = (*own[phase], *(change for change in engine if change not in own[phase]), *LAST_RESORTS)
    return [(change, changed) for change in changes if (changed := change(config)) is not None]


def _with(config: Config, **values: Any) -> Config | None:
    try:
        return Config(**{**config.model_dump(), **values})
    except ValueError:  # a combination that config.py refuses
        return None


def _fewer_answers(config: Config) -> Config | None:
    """Half of the answers that are really decoded at once in evaluation."""
    answers = min(config.eval_batch_size, config.decode_batch_size or config.eval_batch_size)
    return _with(config, eval_batch_size=answers // 2) if answers > 1 else None


def _fewer_lines(config: Config) -> Config | None:
    """Half of the completions that are really decoded at once, in a step or in evaluation."""
    most = config.batch_size if config.eval_benchmarks is None else max(config.batch_size, config.eval_batch_size)
    lines = min(config.decode_batch_size or most, most)
    return _with(config, decode_batch_size=lines // 2) if lines > 1 else None


def _built_in_loop(config: Config) -> Config | None:
    return None if config.engine == "loop" else _with(config, engine="loop")


def _smaller_batches(config: Config) -> Config | None:
    """Half of the tokens that a micro-batch really can have."""
    least = config.max_prompt_tokens + config.max_new_tokens
    budget = min(config.token_budget, config.batch_size * least)
    return _with(config, token_budget=max(least, budget // 2)) if budget > least else None


def _checkpointing(config: Config) -> Config | None:
    return None if config.gradient_checkpointing else _with(config, gradient_checkpointing=True)


def _teacher_in_4_bits(config: Config) -> Config | None:
    return _with(config, teacher_bits=4) if config.teacher_bits > 4 else None


def _optimizer_in_8_bits(config: Config) -> Config | None:
    return _with(config, optimizer="adamw8bit") if config.full_finetune and config.optimizer == "adamw" else None


def _adapter(config: Config) -> Config | None:
    return _with(config, full_finetune=False, lr=None) if config.full_finetune else None


def _student_in_4_bits(config: Config) -> Config | None:
    # vLLM samples from 16-bit weights.
    return _with(config, student_bits=4, engine="loop") if config.student_bits > 4 else None


def _lower_rank(config: Config) -> Config | None:
    if config.full_finetune or config.lora_rank <= LOWEST_RANK:
        return None
    rank = max(LOWEST_RANK, config.lora_rank // 2)
    return _with(config, lora_rank=rank, lora_alpha=config.lora_alpha * rank / config.lora_rank)


def _shorter_prompts(config: Config) -> Config | None:
    return _halved(config, "max_prompt_tokens")


def _shorter_completions(config: Config) -> Config | None:
    return _halved(config, "max_new_tokens")


def _halved(config: Config, name: str) -> Config | None:
    value = getattr(config, name)
    return _with(config, **{name: max(SHORTEST, value // 2)}) if value > SHORTEST else None


LAST_RESORTS = (
    _teacher_in_4_bits,
    _optimizer_in_8_bits,
    _shorter_prompts,
    _lower_rank,
    _student_in_4_bits,
    _shorter_completions,
    _adapter,
)
RESTORED_FIRST = (
    ("max_new_tokens",),
    ("student_bits",),
    ("lora_rank", "lora_alpha"),
    ("max_prompt_tokens",),
    ("optimizer",),
    ("teacher_bits",),
    ("token_budget",),
    ("engine",),
    ("gradient_checkpointing",),
    ("decode_batch_size",),
    ("eval_batch_size",),
)


def config_text(config: Config, comment: str) -> str:
    """Returns a config file with what differs from the defaults, below a comment line."""
    import yaml

    default = {name: field.default for name, field in Config.model_fields.items()}
    values = {name: value for name, value in config.model_dump().items() if value != default[name]}
    # A file that names no models would be one on top of the bundled pair.
    values = {"student": config.student, "teacher": config.teacher} | values
    return f"# {comment}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
