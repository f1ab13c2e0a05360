"""Problems: from the package, a file or the hub, to prompt ids; and the order in which training sees them.

A row that can't be used is counted and named (where it stands and why), never silently passed over.
"""

import contextlib
import datetime
import functools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.bundled import problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What templates that would put in the day's date are told, always: a run that is resumed tomorrow has the same prompts.
SOME_DAY: dict[str, Any] = {
    "date_string": "26 Jul 2024",
    "strftime_now": lambda form: datetime.date(2024, 7, 26).strftime(form),
}
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")  # of a message
_PLACEHOLDER = "@@answer@@"
BUNDLED_PROBLEMS = {False: 8192, True: 256}  # for training; held out, for evaluation


@dataclass(frozen=True)
class Prompt:
    """One problem, ready to be answered."""

    ids: tuple[int, ...]  # the chat template's text up to where the answer begins, as tokens
    question: str  # the user's words
    answer: str | None  # the reference answer, where there is one
    tolerance: float | None = None  # the largest difference from it that the benchmark allows
    messages: tuple[tuple[str, str], ...] = ()  # (role, content) of all that is asked, system prompt and suffix too


@dataclass(frozen=True)
class Skipped:
    """A row that can't be a prompt; as text, where it stands and why."""

    reason: str
    too_long: bool = False  # it has more tokens than max_prompt_tokens
    where: str = ""  # such as "problems.jsonl, line 7"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """Where rows are read from."""

    data: str  # "bundled", a file or a hub id
    subset: str | None = None
    split: str = "train"
    held_out: bool = False
    flag: str = "--data"  # what the user typed it with


def load_prompts(
    config: Config, tokenizer: "PreTrainedTokenizerBase", limit: int | None = None
) -> tuple[list[Prompt], list[Skipped]]:
    """Returns the usable training prompts (the first `limit`, if given) and the rows among them that can't be used.

    Raises UserError when the data can't be read, lacks the columns, or has no usable row.
    """
    source = Source(config.data, config.data_subset, config.data_split)
    column = "problem" if config.data == BUNDLED else config.prompt_column

    def read(row: dict) -> Prompt | Skipped:
        if column not in row:
            return Skipped(f"no column '{column}' among {', '.join(map(str, row))}")
        answer = decoded(row.get(config.answer_column))
        prompt = make_prompt(row[column], tokenizer, config, column)
        return replace(prompt, answer=str(answer)) if isinstance(prompt, Prompt) and answer is not None else prompt

    prompts, skipped, _ = usable(source, read, limit, None, "--data, --prompt-column and --max-prompt-tokens")
    return prompts, skipped


def usable(
    source: Source, read: Callable[[dict], Prompt | Skipped], limit: int | None, bundled: int | None, flags: str
) -> tuple[list[Prompt], list[Skipped], bool]:
    """Returns the rows that can be read as prompts (the first `limit`), those that can't, and if there are more.

    `bundled` is how many of the bundled problems there are. Raises UserError, to check `flags`, where no row is usable.
    """
    prompts: list[Prompt] = []
    skipped: list[Skipped] = []
    more = False
    for where, row in rows(source, bundled):
        if more := limit is not None and len(prompts) == limit:
            break
        prompt = Skipped(row) if isinstance(row, str) else read(row)
        if isinstance(prompt, Prompt):
            prompts.append(prompt)
        else:
            skipped.append(replace(prompt, where=where))
    if not prompts:
        reasons = "\n  ".join(map(str, skipped[:5])) or "it has no rows"
        raise UserError(f"no usable problem in {source.data}:\n  {reasons}\ncheck {flags}")
    return prompts, skipped, more


def say_skipped(skipped: list[Skipped], used: int, data: str, say: Callable[[str], None]) -> None:
    """Says how many rows could not be used, and why not the first of them."""
    if skipped:
        shown = "".join(f"\n  {line}" for line in skipped[:5]) + ("\n  ..." if len(skipped) > 5 else "")
        say(f"{len(skipped):,} of {len(skipped) + used:,} rows of {data} can't be used:{shown}")


def step_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Returns which of `count` prompts step `step` (from 0) uses: a function of its arguments alone.

    The data is one long row of epochs, each a permutation of its own; a batch may cross from one into the next.
    """
    places = (divmod(position, count) for position in range(step * batch_size, (step + 1) * batch_size))
    return [_permutation(count, seed, epoch)[offset] for epoch, offset in places]


@functools.lru_cache(maxsize=2)  # the epoch at hand and the one a batch crosses into
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def make_prompt(value: Any, tokenizer: "PreTrainedTokenizerBase", settings: Any, column: str) -> Prompt | Skipped:
    """Returns a question (a text, or a list of messages) as a Prompt, or why it can't be one.

    `settings` has the fields prompt_suffix, system_prompt, enable_thinking and max_prompt_tokens.
    """
    value = decoded(value)
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
        text = prompt_text(messages, tokenizer, settings.enable_thinking)
        text.encode()
    except TemplateFault as error:
        return Skipped(f"the chat template refuses it: {error}")
    except UnicodeEncodeError:
        return Skipped("it holds half of a character (a lone surrogate), which is not text")
    ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids:
        return Skipped("the tokenizer makes no token of it")
    if len(ids) > settings.max_prompt_tokens:
        longest = settings.max_prompt_tokens
        return Skipped(f"the prompt has {len(ids)} tokens, more than max_prompt_tokens {longest}", too_long=True)
    return Prompt(ids, question, None, messages=tuple((m["role"], m["content"]) for m in messages))


def decoded(value: Any) -> Any:
    """Returns bytes as the text that they are in UTF-8: Parquet writers may leave the type out; all else, and other bytes, as is."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value


class TemplateFault(ValueError):
    """A chat template that fails on what it is asked to render."""


def prompt_text(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", thinking: bool) -> str:
    """Returns the messages in the tokenizer's chat template, up to where the answer begins; plain without a template.

    Raises TemplateFault.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(m["content"] for m in messages) + "\n"
    return _rendered(messages, tokenizer, add_generation_prompt=True, enable_thinking=thinking)


def _rendered(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **SOME_DAY, **options))
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


def rows(source: Source, count: int | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, the row); a row that can't even be read is the reason, as text.

    Of the bundled problems, which have no end, the first `count`. Raises UserError when the source can't be read.
    """
    if source.data == BUNDLED:
        for i, problem in enumerate(problems(0, count or BUNDLED_PROBLEMS[source.held_out], source.held_out)):
            yield f"bundled problem {i}", {"problem": problem.question, "answer": str(problem.answer)}
        return
    path = Path(source.data)
    of_file = path.suffix in (".json", ".jsonl", ".parquet") or path.exists()
    yield from _file_rows(path, source.flag) if of_file else _hub_rows(source)


def _file_rows(path: Path, flag: str) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise UserError(f"no file of problems at {path}; type {flag} with a JSON, JSONL or Parquet file, or a hub id")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a Parquet file: {error}") from None
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist(), 1))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first row
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; type {flag} with a file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; type {flag} with a JSON, JSONL or Parquet file") from None
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}; a file with one object a line must end in .jsonl") from None
        if not isinstance(rows, list):
            raise UserError(f"{path} must hold a list of objects, but holds a {type(rows).__name__}")
        for i, row in enumerate(rows, 1):
            yield f"{path}, item {i}", row if isinstance(row, dict) else "not an object"
        return
    for i, line in ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()):  # they end at "\n" alone
        try:
            row = json.loads(line)
            yield f"{path}, line {i}", row if isinstance(row, dict) else "not an object"
        except json.JSONDecodeError as error:
            yield f"{path}, line {i}", f"not JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
            yield f"{path}, line {i}", f"not JSON that can be read ({error})"


def _hub_rows(source: Source) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(source.data, source.subset, split=source.split)
    except Exception as error:  # the library raises dozens of kinds, of its own and of three others
        reason = " ".join(str(error).split())[:300]
        what = f"{source.data} (subset {source.subset}, split {source.split}) from the hub: {reason}"
        mend = f"type {source.flag} with a hub id, or with a JSON, JSONL or Parquet file"
        raise UserError(f"can't load {what}\n{mend}") from error
    yield from ((f"{source.data}, row {i}", row) for i, row in enumerate(data))
