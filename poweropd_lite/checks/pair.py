"""Whether a student and a teacher can be distilled at all, and which ids may be sampled, scored and stopped at.

Read from tokenizers and configs alone, before any weights are loaded; the checks themselves are in pair_checks.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config, full_name
from poweropd_lite.base.errors import Finding, notices, refuse
from poweropd_lite.checks.pair_checks import (
    PROBE,
    Side,
    check_prompt_tokens,
    examine_pair,
    scorable_ids,
    teachers_stop,
    template_of,
)
from poweropd_lite.models.loading import load_model_config, load_tokenizer
from poweropd_lite.problems.prompts import Prompt, end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKED_PROMPTS = 64  # prompts that both tokenizers cut before a run


@dataclass(frozen=True)
class Pair:
    """A sound pair. Ids are of the student's vocabulary, which the teacher shares."""

    tokenizer: "PreTrainedTokenizerBase"  # the student's
    teacher_tokenizer: "PreTrainedTokenizerBase"
    stop_ids: frozenset[int]  # of either model; a completion ends with the first of them
    teacher_stop: int  # the teacher's own, for stop modes relabel and cross_eos
    forbidden: tuple[int, ...]  # rows of the student's head that must never be sampled
    notices: tuple[str, ...]  # what a user wants to know before training
    sides: tuple[Side, Side]  # student and teacher, as the checks see them


def read_sides(config: Config) -> tuple[Side, Side]:
    """Returns student and teacher without their weights; raises UserError for what can't be read."""

    def read(role: str) -> Side:
        name = getattr(config, role)
        tokenizer = load_tokenizer(name, role, config.trust_remote_code)
        model_config, stops = load_model_config(name, role, config.trust_remote_code)
        return Side(role, full_name(name, role), tokenizer, model_config, tuple(stops))

    return read("student"), read("teacher")


def load_pair(config: Config) -> Pair:
    """Returns the checked pair of a config; raises UserError with every reason where it is unsound."""
    student, teacher = read_sides(config)
    findings = examine_pair(config, student, teacher)
    refuse(findings)
    return settle_pair(config, student, teacher, findings)


def settle_pair(config: Config, student: Side, teacher: Side, findings: Sequence[Finding]) -> Pair:
    """Returns the pair of two sides that were not refused; a student without a chat template gets the teacher's."""
    scorable = scorable_ids(student, teacher)
    turn = end_of_turn(template_of(student, teacher))
    if not student.tokenizer.chat_template:
        student.tokenizer.chat_template = teacher.tokenizer.chat_template
    stops = {*student.stops, *teacher.stops} | ({turn} & scorable if turn is not None else set())
    forbidden, sides = tuple(i for i in range(student.rows) if i not in scorable), (student, teacher)
    models = student.tokenizer, teacher.tokenizer
    return Pair(*models, frozenset(stops), teachers_stop(student, teacher), forbidden, notices(findings), sides)


def check_prompts(pair: Pair, config: Config, prompts: Sequence[Prompt]) -> None:
    """Raises UserError if the teacher can't read the prompts as the student does: a built-in line and the first 64 are cut by both."""
    texts = [PROBE, *(str(pair.tokenizer.decode(list(prompt.ids))) for prompt in prompts[:CHECKED_PROMPTS])]
    refuse(check_prompt_tokens(config, *pair.sides, prompts, texts))
