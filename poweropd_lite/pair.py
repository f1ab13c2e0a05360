"""Whether a student and a teacher can be distilled at all, and which ids may be sampled, scored and stopped at.

Read from tokenizers and configs alone, before any weights are loaded. Nothing here knows Qwen's names: stop ids are what
the tokenizers and generation configs themselves say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poweropd_lite.config import Config
from poweropd_lite.data import Prompt, prompt_text
from poweropd_lite.errors import UserError
from poweropd_lite.models import load_model_config, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Let x = 3.14; what is 12 * (7 - x)?\n\n  Give \\boxed{42} — naïve café, 東京, 😀.\tEnd"


@dataclass(frozen=True)
class Pair:
    """A sound pair. Ids are of the student's vocabulary, which the teacher shares."""

    tokenizer: "PreTrainedTokenizerBase"  # the student's
    teacher_tokenizer: "PreTrainedTokenizerBase"
    stop_ids: frozenset[int]  # of either model; a completion ends with the first of them
    teacher_stop: int  # the teacher's own, for stop modes relabel and cross_eos
    forbidden: tuple[int, ...]  # rows of the student's head that must never be sampled
    notices: tuple[str, ...]  # what a user wants to know before training


def load_pair(config: Config) -> Pair:
    """Returns the checked pair of a config; raises UserError with the reason where it is unsound."""
    tokenizer = load_tokenizer(config.student, "student", config)
    teacher_tokenizer = load_tokenizer(config.teacher, "teacher", config)
    student_config, student_stops = load_model_config(config.student, "student", config)
    teacher_config, teacher_stops = load_model_config(config.teacher, "teacher", config)
    _check_attention(config, student_config)
    for role, model_config in (("student", student_config), ("teacher", teacher_config)):
        _check_length(config, role, model_config)

    ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    rows, teacher_rows = student_config.get_text_config().vocab_size, teacher_config.get_text_config().vocab_size
    _check_same_ids(config, tokenizer, teacher_tokenizer, ours, theirs)
    scorable = {i for token, i in ours.items() if theirs.get(token) == i and i < min(rows, teacher_rows)}
    forbidden = tuple(i for i in range(rows) if i not in scorable)
    notices = []
    unscorable = len(set(ours.values()) & set(forbidden))
    if unscorable:
        notices.append(f"{unscorable} tokens that only the student has are never sampled: the teacher can't score them")
    padded = rows - len(set(ours.values()) & set(range(rows)))
    if padded:
        notices.append(f"{padded} rows of the student's head that no token has are never sampled")

    if teacher_tokenizer.eos_token_id is not None:
        teacher_stops = [teacher_tokenizer.eos_token_id, *teacher_stops]
    if tokenizer.eos_token_id is not None:
        student_stops = [tokenizer.eos_token_id, *student_stops]
    if not teacher_stops:
        raise UserError(
            f"neither tokenizer nor generation config of {config.teacher} names a stop token; a teacher needs one"
        )
    outside = sorted({i for i in (*student_stops, *teacher_stops) if i not in scorable})
    if outside:
        raise UserError(
            f"stop ids {outside} are not tokens that both {config.student} and {config.teacher} have, so a completion "
            "could not end; mend eos_token_id in the generation_config.json that names them"
        )
    notices += _settle_template(tokenizer, teacher_tokenizer, config)
    stops = frozenset(student_stops) | frozenset(teacher_stops)
    return Pair(tokenizer, teacher_tokenizer, stops, teacher_stops[0], forbidden, tuple(notices))


def _check_same_ids(
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
    ours: dict[str, int],
    theirs: dict[str, int],
) -> None:
    by_id = {i: token for token, i in theirs.items()}
    moved = [(t, i) for t, i in ours.items() if by_id.get(i, t) != t or theirs.get(t, i) != i]
    if moved:
        token, i = moved[0]
        raise UserError(
            f"{config.student} and {config.teacher} number their tokens differently ({len(moved):,} of {len(ours):,}; for "
            f"one, {token!r} is {i} for the student and {theirs.get(token, 'absent')} for the teacher), so the teacher would "
            "score other words than the student wrote; choose two models of one family"
        )


def check_prompts(pair: Pair, config: Config, prompts: Sequence[Prompt]) -> None:
    """Raises UserError if the teacher can't read the prompts as the student does.

    No prompt may hold an id that the teacher has not; and the two tokenizers must cut a built-in line and the first 64
    prompts, template included, into the same tokens. Equal vocabularies don't show that: the order of merges, the
    pre-tokenizer or the normaliser may differ.
    """
    forbidden = set(pair.forbidden)
    unknown = sorted({i for prompt in prompts for i in prompt.ids if i in forbidden})
    if unknown:
        names = ", ".join(map(repr, pair.tokenizer.convert_ids_to_tokens(unknown[:5])))
        raise UserError(
            f"the prompts hold tokens that {config.teacher} does not have ({names}), so it can't score what follows them; "
            "choose a teacher of the student's family, or a chat template without them"
        )
    for text in (_PROBE, *(pair.tokenizer.decode(list(prompt.ids)) for prompt in prompts[:64])):
        mine, other = (t(text, add_special_tokens=False)["input_ids"] for t in (pair.tokenizer, pair.teacher_tokenizer))
        if mine != other:
            raise UserError(
                f"{config.student} and {config.teacher} cut the same text into different tokens ({len(mine)} and "
                f"{len(other)} for {text[:60]!r}), though their vocabularies agree; choose two models of one family"
            )


def _settle_template(
    tokenizer: "PreTrainedTokenizerBase", teacher_tokenizer: "PreTrainedTokenizerBase", config: Config
) -> list[str]:
    """Gives a student without a chat template the teacher's; returns what a user wants to know about the templates."""
    if not tokenizer.chat_template and not teacher_tokenizer.chat_template:
        return ["neither model has a chat template; prompts are plain text"]
    if not tokenizer.chat_template:
        tokenizer.chat_template = teacher_tokenizer.chat_template
        return ["the student has no chat template; prompts follow the teacher's"]
    if not teacher_tokenizer.chat_template:
        return ["the teacher has no chat template; prompts follow the student's"]
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "x"}]
    try:
        ours, theirs = (prompt_text(messages, t, config.enable_thinking) for t in (tokenizer, teacher_tokenizer))
    except TemplateError as error:
        raise UserError(
            f"the chat template of {config.student} or {config.teacher} can't render a question: {error}; mend its "
            "chat_template.jinja"
        ) from None
    if ours != theirs:
        return [
            f"the chat templates differ, and prompts follow the student's: the teacher scores answers to {ours!r}, where its "
            f"own form is {theirs!r}"
        ]
    return []


def _check_length(config: Config, role: str, model_config) -> None:
    # The teacher reads no evaluation.
    longest = config.longest_rollout if role == "student" else config.max_prompt_tokens + config.max_new_tokens
    new = longest - config.max_prompt_tokens
    room = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if room is not None and longest > room:
        raise UserError(
            f"a rollout may be {longest} tokens long ({config.max_prompt_tokens} prompt + {new} new), but the {role} "
            f"{getattr(config, role)} has {room} positions; lower --max-prompt-tokens, --max-new-tokens or "
            "--eval-max-new-tokens"
        )


def _check_attention(config: Config, student_config) -> None:
    text = student_config.get_text_config()
    kinds: Iterable[str] = set(getattr(text, "layer_types", None) or ["full_attention"])
    others = sorted(kinds - {"full_attention"})
    if others:
        raise UserError(
            f"the built-in rollout loop decodes full-attention models; {config.student} has layers of kind "
            f"{', '.join(others)}; choose a student such as Qwen3"
        )
