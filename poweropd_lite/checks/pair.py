"""Whether a student and a teacher can be distilled at all, and which ids may be sampled, scored and stopped at.

Read from tokenizers and configs alone, before any weights are loaded; the checks themselves are in pair_checks.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding, NotDownloaded, UserError, notices, refuse
from poweropd_lite.base.teachers import SELF, called, files_of, files_role
from poweropd_lite.checks.pair_checks import (
    PROBE,
    Side,
    check_prompt_tokens,
    examine_pair,
    scorable_ids,
    teachers_stop,
    template_of,
)
from poweropd_lite.models.loading import load_model_config, load_tokenizer, taken_from
from poweropd_lite.problems.apart import Apart, asked_apart
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
    apart: Apart | None = None  # how the teacher is asked, where that is otherwise than the student


def read_sides(config: Config) -> tuple[Side, Side]:
    """Returns student and teacher without their weights; raises UserError for what can't be read."""

    def read(role: str) -> Side:
        name, read_as = files_of(config, role), files_role(config) if role == "teacher" else role
        tokenizer = load_tokenizer(name, read_as, config.trust_remote_code)
        model_config, stops = load_model_config(name, read_as, config.trust_remote_code)
        whole = taken_from(name, read_as, config.trust_remote_code)
        return Side(role, called(config, role), tokenizer, model_config, tuple(stops), whole)

    student = read("student")
    if config.teacher == SELF:
        return student, replace(student, role="teacher")
    try:
        return student, read("teacher")
    except UserError as error:
        if not config.served:
            raise
        what = "the tokenizer and config of a served teacher are read here, by its name or by --teacher-tokenizer"
        found = f"{what}, and {files_of(config, 'teacher')} has none: "
        if isinstance(error, NotDownloaded):
            raise NotDownloaded(found + error.found, "type --teacher-tokenizer with a folder that has them") from None
        raise UserError(found + str(error)) from None


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
    stop, apart = teachers_stop(student, teacher), asked_apart(config, *models)
    return Pair(*models, frozenset(stops), stop, forbidden, notices(findings), sides, apart)


def check_prompts(pair: Pair, config: Config, prompts: Sequence[Prompt]) -> None:
    """Raises UserError if the teacher can't read the prompts as the student does: a built-in line and the first 64 are cut by both."""
    texts = [PROBE, *(str(pair.tokenizer.decode(list(prompt.ids))) for prompt in prompts[:CHECKED_PROMPTS])]
    refuse(check_prompt_tokens(config, *pair.sides, prompts, texts))
