"""A question, or messages, as the ids of a prompt in the model's chat template; and the order in which training sees them."""

import datetime
import functools
import hashlib
import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poweropd_lite.problems.files import decoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What templates that would put in the day's date are told, always: a run that is resumed tomorrow has the same prompts.
SOME_DAY: dict[str, Any] = {
    "date_string": "26 Jul 2024",
    "strftime_now": lambda form: datetime.date(2024, 7, 26).strftime(form),
}
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")  # of a message
_PLACEHOLDER = "@@answer@@"
_SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Prompt:
    """One problem, ready to be answered."""

    ids: tuple[int, ...]  # the chat template's text up to where the answer begins, as tokens
    question: str  # the user's words
    answer: str | None  # the reference answer, where there is one
    tolerance: float | None = None  # the largest difference from it that the benchmark allows
    messages: tuple[tuple[str, str], ...] = ()  # (role, content) of all that is asked, system prompt and suffix too
    teacher_ids: tuple[int, ...] = ()  # what the teacher reads in place of the ids; (): the same
    row: str | None = None  # the data's row as JSON, where a user's function scores by it

    @property
    def ids_digest(self) -> bytes:
        """SHA-256 of the ids, the teacher's too where it has its own."""
        apart = [-1, *self.teacher_ids] if self.teacher_ids else []
        return hashlib.sha256(array("i", [*self.ids, *apart]).tobytes()).digest()

    @property
    def messages_digest(self) -> bytes:
        """SHA-256 of what is asked, whatever its tokens."""
        return hashlib.sha256(json.dumps(self.messages).encode()).digest()


@dataclass(frozen=True)
class Rendered:
    """A problem in the chat template's text, not yet tokenized."""

    text: str
    question: str
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Skipped:
    """A row that can't be a prompt; as text, where it stands and why."""

    reason: str
    too_long: bool = False  # it has more tokens than max_prompt_tokens
    where: str = ""  # such as "problems.jsonl, line 7"
    count: int = 1  # rows with this reason, of which this is the first

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def step_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Returns which of `count` prompts step `step` (from 0) uses: a function of its arguments alone.

    The data is one long row of epochs, each a permutation of its own; a batch may cross from one into the next.
    """
    places = (divmod(position, count) for position in range(step * batch_size, (step + 1) * batch_size))
    return [_permutation(count, seed, epoch)[offset] for epoch, offset in places]


@functools.lru_cache(maxsize=2)  # the epoch at hand and the one a batch crosses into
def _permutation(count: int, seed: int, epoch: int) -> Sequence[int]:
    order = array("q", range(count))  # 8 bytes a prompt, where a list takes 40
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def cut_last_turn(value: Any) -> tuple[Any, str | None]:
    """Returns messages without the assistant's turn that ends them, and what it says; anything else as it is, and None.

    Lists of {from, value} come out as lists of {role, content}.
    """
    value = decoded(value)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return value, None
    if value and all(m.get("from") in _SPEAKERS and isinstance(m.get("value"), str) for m in value):
        value = [{"role": _SPEAKERS[m["from"]], "content": m["value"]} for m in value]
    last = value[-1] if len(value) > 1 else {}
    if last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return value[:-1], last["content"]
    return value, None


def make_prompt(value: Any, tokenizer: "PreTrainedTokenizerBase", settings: Any, column: str) -> Prompt | Skipped:
    """Returns a question (a text, or a list of messages) as a Prompt, or why it can't be one.

    `settings` has the fields prompt_suffix, system_prompt, enable_thinking, template_kwargs and max_prompt_tokens.
    """
    rendered = render(value, tokenizer, settings, column)
    return rendered if isinstance(rendered, Skipped) else tokenize([rendered], tokenizer, settings)[0]


def render(value: Any, tokenizer: "PreTrainedTokenizerBase", settings: Any, column: str) -> Rendered | Skipped:
    """Returns a question in the chat template, or why it can't be asked; as make_prompt does before it tokenizes."""
    value = decoded(value)
    if isinstance(value, bytes):
        return Skipped(f"'{column}' holds bytes that are not UTF-8 text")
    if isinstance(value, list) and any(isinstance(m, dict) and any(map(m.get, TOOL_KEYS)) for m in value):
        return Skipped(f"'{column}' holds tool calls or what a tool said, which a prompt here would leave out")
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    elif isinstance(value, list) and value and all(map(_is_message, value)):
        messages = [{"role": m["role"], "content": m["content"]} for m in value]
        if messages[-1]["role"] != "user":
            return Skipped(f"the last message is the {messages[-1]['role']}'s; a prompt must end with the user's")
    else:
        return Skipped(f"'{column}' holds neither a text nor a list of messages with a role and a text as content")
    question = messages[-1]["content"]
    if not question.strip():
        return Skipped(f"'{column}' is empty")
    messages[-1]["content"] += settings.prompt_suffix
    if settings.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system_prompt})
    try:
        text = prompt_text(messages, tokenizer, template_options(settings))
        text.encode()
    except TemplateFault as error:
        return Skipped(f"the chat template refuses it: {error}")
    except UnicodeEncodeError:
        return Skipped("it holds half of a character (a lone surrogate), which is not text")
    return Rendered(text, question, tuple((m["role"], m["content"]) for m in messages))


def tokenize(
    rendered: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase", settings: Any
) -> list[Prompt | Skipped]:
    """Returns a prompt of each, or why it can't be one; all are tokenized at once, by as many threads as the library takes."""
    if not rendered:
        return []
    rows = tokenizer([r.text for r in rendered], add_special_tokens=False, verbose=False)["input_ids"]
    return [_prompt(r, tuple(ids), settings.max_prompt_tokens) for r, ids in zip(rendered, rows, strict=True)]


def _prompt(rendered: Rendered, ids: tuple[int, ...], longest: int) -> Prompt | Skipped:
    if not ids:
        return Skipped("the tokenizer makes no token of it")
    if len(ids) > longest:
        return Skipped(f"the prompt has {len(ids)} tokens, more than max_prompt_tokens {longest}", too_long=True)
    return Prompt(ids, rendered.question, None, messages=rendered.messages)


class TemplateFault(ValueError):
    """A chat template that fails on what it is asked to render."""


def template_options(settings: Any) -> dict[str, Any]:
    """Returns what the chat template is told."""
    return {"enable_thinking": settings.enable_thinking, **settings.template_kwargs}


def prompt_text(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", options: dict[str, Any]) -> str:
    """Returns the messages in the tokenizer's chat template, up to where the answer begins; plain without a template.

    Raises TemplateFault.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(m["content"] for m in messages) + "\n"
    return _rendered(messages, tokenizer, add_generation_prompt=True, **options)


def _rendered(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **{**SOME_DAY, **options}))
    except Exception as error:  # a template is a program, which fails in ways of its own
        raise TemplateFault(f"{type(error).__name__}: {error}") from error


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the special token that the chat template puts behind an assistant's words, or None."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACEHOLDER}]
    try:
        text = _rendered(messages, tokenizer)
    except TemplateFault:
        return None
    ids = tokenizer(text.rpartition(_PLACEHOLDER)[2], add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
