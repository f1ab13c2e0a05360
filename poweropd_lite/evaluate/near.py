"""How close a model is to a teacher, as a part of its evaluation: KL(model | teacher) on one completion a prompt.

What training's own evaluation estimates (run/closeness.py), on the same random numbers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.config import Config, full_name, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.evaluate.asked import Asked
from poweropd_lite.evaluate.folder import problems_record
from poweropd_lite.evaluate.serve import Serving
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target
from poweropd_lite.method.rollout import Engine
from poweropd_lite.models.teacher import Teacher, load_teacher
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.run.closeness import measure

FILE = "kl.json"


@dataclass(frozen=True)
class Near:
    """What is asked: how close to which teacher, on which prompts."""

    pair: Config  # the model as the student, the teacher, its bits, the longest completion, the token budget
    prompts: list[Prompt]
    about: str  # of the prompts
    forbidden: tuple[int, ...]  # ids that only one of the two has

    @property
    def room(self) -> int:
        """The most tokens of a prompt and its completion."""
        return max(len(prompt.ids) for prompt in self.prompts) + self.pair.max_new_tokens

    @property
    def record(self) -> dict[str, Any]:
        """What tells this estimate from another of the same model."""
        unanswered = [replace(prompt, answer=None, tolerance=None) for prompt in self.prompts]
        teacher = {"teacher": full_name(self.pair.teacher, "teacher"), "bits": self.pair.teacher_bits}
        return teacher | problems_record(unanswered, self.pair.max_new_tokens)


def settle_near(
    config: EvalConfig, target: Target, asked: Asked, positions: int | None, say: Callable[[str], None]
) -> Near | None:
    """Returns what is to be estimated, if that is asked for or nothing else can be; `positions` are the model's.

    Raises UserError for what can't work.
    """
    run = target.run
    if config.teacher is None and (asked.sets or run is None):
        if config.teacher_bits is not None:
            raise UserError("--teacher-bits are those of --teacher, which is not given; leave them out, or add it")
        return None
    if run is None and config.teacher == "run":
        raise UserError(f"{target.name} is no run folder, so it has no teacher of its own; type --teacher with a model")
    own = run.teacher if run is not None and config.teacher in (None, "run") else None
    prompt = max(len(prompt.ids) for prompt in asked.prompts)
    longest = config.max_new_tokens or (run.max_new_tokens if run else max(s.benchmark.longest for s in asked.sets))
    if positions is not None and config.max_new_tokens is None:
        longest = max(1, min(longest, positions - prompt))
    pair = load_config(
        student=target.base,
        teacher=own or config.teacher,
        teacher_bits=config.teacher_bits or (run.teacher_bits if run and own else 4),
        max_prompt_tokens=prompt,
        max_new_tokens=longest,
        batch_size=run.batch_size if run else Config.model_fields["batch_size"].default,
        token_budget=max(prompt + longest, run.tokens_at_once) if run else "auto",
        trust_remote_code=config.trust_remote_code,
    )
    if not asked.sets:
        say(f"no problem has an answer to be graded by: the KL to the teacher alone is estimated, on {asked.about}")
    return Near(pair, asked.prompts, asked.about, load_pair(pair).forbidden)


def read_near(folder: Path) -> dict[str, Any] | None:
    """Returns the estimate that is in an evaluation's folder, if there is one that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return found if {"kl", "kl_error", "teacher_logprob", "teacher", "hash"} <= set(found) else None
    except (OSError, ValueError, TypeError):  # it is made anew
        return None


def is_there(near: Near, folder: Path) -> bool:
    """Whether an evaluation's folder has this estimate already."""
    found = read_near(folder) or {}
    return near.record.items() <= found.items()


def measure_near(near: Near, engine: Engine, how: Serving, folder: Path, tick: Callable[[int], bool]) -> None:
    """Estimates, and writes kl.json into the folder; nothing if `tick` says no."""
    pair = near.pair

    def teacher() -> Teacher:
        engine.close()  # vLLM, where it is the engine, has most of a card
        return load_teacher(pair.teacher, pair.teacher_bits, how.device, how.dtype, pair.trust_remote_code)

    forbidden = torch.tensor(near.forbidden, dtype=torch.long, device=how.device)
    prompts, lines = [prompt.ids for prompt in near.prompts], min(how.lines, pair.batch_size)
    sizes = pair.max_new_tokens, how.seed, lines, pair.tokens_at_once
    found = measure(engine, teacher, prompts, forbidden, *sizes, tick)
    if found is not None:
        write_json(folder / FILE, {**near.record, "about": near.about, **found[0].record()})
