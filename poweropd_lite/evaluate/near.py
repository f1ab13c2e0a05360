"""How close a model is to a teacher, as a part of its evaluation: KL(model | teacher) on one completion a prompt.

What training's own evaluation estimates (run/closeness.py), on the same random numbers.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json, write_json
from poweropd_lite.base.teachers import SELF, called
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.evaluate.asked import Asked
from poweropd_lite.evaluate.folder import problems_record
from poweropd_lite.evaluate.serve import Serving
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target
from poweropd_lite.method.rollout import Engine
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.served import ServedTeacher, WaitStopped, connect
from poweropd_lite.models.teacher import Teacher, load_teacher
from poweropd_lite.problems.apart import is_apart
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.run.closeness import measure

FILE = "kl.json"
LIMITS = ("teacher_concurrency", "teacher_timeout", "teacher_patience")  # of a served teacher, as the run has them


@dataclass(frozen=True)
class Near:
    """What is asked: how close to which teacher, on which prompts."""

    pair: Config  # the model as the student, the teacher, its bits, the longest completion, the token budget
    prompts: Sequence[Prompt]
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
        bits = None if self.pair.served else self.pair.teacher_bits
        name = called(self.pair, "teacher")
        teacher = {"teacher": os.path.abspath(name) if os.path.isdir(name) else name, "bits": bits}
        shown = sha256(json.dumps([prompt.teacher_ids for prompt in self.prompts]).encode()).hexdigest()[:16]
        apart = {"teacher_prompts": shown} if any(prompt.teacher_ids for prompt in self.prompts) else {}
        return teacher | problems_record(unanswered, self.pair.max_new_tokens) | apart


def settle_near(
    config: EvalConfig, target: Target, asked: Asked, positions: int | None, say: Callable[[str], None]
) -> Near | None:
    """Returns what is to be estimated, if that is asked for or nothing else can be; `positions` are the model's.

    Raises UserError for what can't work.
    """
    run = target.run
    if config.teacher == SELF:
        raise UserError("--teacher self is a setting of training; type --teacher run, or --teacher with the base model")
    if config.teacher in (None, "run") and (config.teacher_name or config.teacher_tokenizer):
        raise UserError(
            "--teacher-name and --teacher-tokenizer are of a --teacher by its address; leave them out, or type --teacher with one"
        )
    if config.teacher is None and (asked.sets or run is None):
        if config.teacher_bits is not None:
            raise UserError("--teacher-bits are those of --teacher, which is not given; leave them out, or add it")
        return None
    if run is None and config.teacher == "run":
        raise UserError(f"{target.name} is no run folder, so it has no teacher of its own; type --teacher with a model")
    own = run.teacher if run is not None and config.teacher in (None, "run") else None
    prompts = [replace(p, teacher_ids=p.teacher_ids if own else ()) for p in asked.prompts]
    if own and run is not None and is_apart(run):
        prompts = [p for p in prompts if p.teacher_ids]
        if without := len(asked.prompts) - len(prompts):
            say(f"{without} prompts lack what the teacher reads more than the student: their KL is not estimated")
        if not prompts:
            raise UserError("no prompt has what the run's teacher reads; leave out --teacher")
    elif run is not None and is_apart(run):
        say("the run's teacher reads prompts of its own; this one is given the student's")
    prompt = max(len(ids) for p in prompts for ids in (p.ids, p.teacher_ids))
    longest = config.max_new_tokens or (run.max_new_tokens if run else max(s.benchmark.longest for s in asked.sets))
    if positions is not None and config.max_new_tokens is None:
        longest = max(1, min(longest, positions - prompt))
    theirs = run if run is not None and own else config
    served = {name: getattr(theirs, name) for name in ("teacher_name", "teacher_tokenizer")}
    limits = {name: getattr(run, name) for name in LIMITS} if run is not None and own else {}
    pair = load_config(
        **served,
        **limits,
        student=target.base,
        teacher=model_path(run.student, "student") if run and own == SELF else own or config.teacher,
        teacher_bits=config.teacher_bits or (_bits(run) if run and own else 4),
        teacher_offload=bool(run and own and run.teacher_offload and config.teacher_bits != 8),
        max_prompt_tokens=prompt,
        max_new_tokens=longest,
        batch_size=run.batch_size if run else Config.model_fields["batch_size"].default,
        token_budget=max(prompt + longest, run.teacher_tokens_at_once) if run else "auto",
        trust_remote_code=config.trust_remote_code,
    )
    if pair.served:  # sampling may take hours
        connect(pair, say)
    if not asked.sets:
        say(f"no problem has an answer to be graded by: the KL to the teacher alone is estimated, on {asked.about}")
    return Near(pair, prompts, asked.about, load_pair(pair).forbidden)


def _bits(run: Config) -> int:
    """Of a run's teacher; the student's own base is as the student has it."""
    own = run.student_bits if run.student_bits == 4 or torch.cuda.is_available() else 32
    return own if run.teacher == SELF else run.teacher_bits


def read_near(folder: Path) -> dict[str, Any] | None:
    """Returns the estimate that is in an evaluation's folder, if there is one that can be read."""
    try:
        found = read_json(folder / FILE)
        if "by_completion" in found:
            found["by_completion"] = [(float(total), int(tokens)) for total, tokens in found["by_completion"]]
        return found if {"kl", "kl_error", "teacher_logprob", "teacher", "hash"} <= set(found) else None
    except (OSError, ValueError, TypeError):  # it is made anew
        return None


def is_there(near: Near, folder: Path) -> bool:
    """Whether an evaluation's folder has this estimate already, with its completions (of an earlier version it has none)."""
    found = read_near(folder) or {}
    return near.record.items() <= found.items() and "by_completion" in found


def measure_near(near: Near, engine: Engine, how: Serving, folder: Path, tick: Callable[[int], bool]) -> None:
    """Estimates, and writes kl.json into the folder; nothing if `tick` says no."""
    pair = near.pair

    def teacher() -> Teacher | ServedTeacher:
        engine.close()  # vLLM, where it is the engine, has most of a card
        if pair.served:
            served = connect(pair, print)
            served.stopped = lambda: not tick(len(near.prompts))
            return served
        of_teacher = pair.teacher, pair.teacher_bits, how.device, how.dtype, pair.trust_remote_code
        return load_teacher(*of_teacher, offload=pair.teacher_offload)

    forbidden = torch.tensor(near.forbidden, dtype=torch.long, device=how.device)
    lines = min(how.lines, pair.batch_size)
    sizes = pair.max_new_tokens, how.seed, lines, pair.tokens_at_once
    try:
        found = measure(engine, teacher, near.prompts, forbidden, *sizes, tick)
    except WaitStopped:
        return
    if found is not None:
        each = {"by_completion": found[0].by_completion}
        write_json(folder / FILE, {**near.record, "about": near.about, **found[0].record(), **each})
