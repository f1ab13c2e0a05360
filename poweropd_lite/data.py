"""Problems: from the package, a file or the hub, to prompt ids; and the order in which training sees them.

A row that can't be used is counted and named (where it stands and why), never silently passed over.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.config import BUNDLED, Config
from poweropd_lite.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED_TRAINING_PROBLEMS = 8192


@dataclass(frozen=True)
class Prompt:
    """One problem, ready to be answered."""

    ids: tuple[int, ...]  # the chat template's text up to where the answer begins, as tokens
    question: str  # the user's words
    answer: str | None  # the reference answer, where there is one


@dataclass(frozen=True)
class Source:
    """Where problems are read from: the fields of Config that say so, for training or for evaluation."""

    data: str
    subset: str | None
    split: str
    prompt_column: str
    answer_column: str
    held_out: bool

    @property
    def flag(self) -> str:
        """The flag that names it."""
        return "--eval-data" if self.held_out else "--data"


def training_source(config: Config) -> Source:
    """Returns where the training prompts come from."""
    c = config
    return Source(c.data, c.data_subset, c.data_split, c.prompt_column, c.answer_column, held_out=False)


def evaluation_source(config: Config) -> Source:
    """Returns where the evaluation problems come from; `config.eval_data` must be given."""
    c = config
    return Source(c.eval_data, c.eval_subset, c.eval_split, c.eval_prompt_column, c.eval_answer_column, held_out=True)


def load_prompts(
    source: Source, tokenizer: "PreTrainedTokenizerBase", config: Config, limit: int | None = None
) -> tuple[list[Prompt], list[str]]:
    """Returns the usable prompts (the first `limit`, if given) and a line on each row that could not be used.

    Raises UserError when the data can't be read, lacks the columns, or has no usable row.
    """
    prompts: list[Prompt] = []
    skipped: list[str] = []
    for where, row in _rows(source, limit):
        if limit is not None and len(prompts) == limit:
            break
        if isinstance(row, str):
            skipped.append(f"{where}: {row}")
            continue
        prompt = _prompt(row, source, tokenizer, config)
        if isinstance(prompt, Prompt):
            prompts.append(prompt)
        else:
            skipped.append(f"{where}: {prompt}")
    if not prompts:
        reasons = "\n  ".join(skipped[:5]) or "it has no rows"
        raise UserError(
            f"no usable problem in {source.data}:\n  {reasons}\n"
            f"check {source.flag}, {source.flag.replace('data', 'prompt-column')} and "
            "--max-prompt-tokens"
        )
    return prompts, skipped


def step_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Returns which of `count` prompts step `step` (from 0) uses: a function of its arguments alone.

    The data is one long row of epochs, each a permutation of its own; a batch may cross from one into the next.
    """
    indices = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        indices.append(_permutation(count, seed, epoch)[offset])
    return indices


_permutations: dict[tuple[int, int, int], list[int]] = {}


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    key = (count, seed, epoch)
    if key not in _permutations:
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        if len(_permutations) >= 2:  # the epoch at hand and the one a batch crosses into
            _permutations.pop(next(iter(_permutations)))
        _permutations[key] = order
    return _permutations[key]


def _prompt(row: dict, source: Source, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Prompt | str:
    """Returns a row as a Prompt, or the reason why it can't be one."""
    from jinja2 import TemplateError

    if source.prompt_column not in row:
        return f"no column '{source.prompt_column}' among {', '.join(map(str, row))}"
    value, answer = row[source.prompt_column], row.get(source.answer_column)
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    elif isinstance(value, list) and value and all(_is_message(m) for m in value):
        messages = [{"role": m["role"], "content": m["content"]} for m in value]
        if messages[-1]["role"] != "user":
            return f"the last message is the {messages[-1]['role']}'s; a prompt must end with the user's"
    else:
        return f"'{source.prompt_column}' holds neither a text nor a list of messages with a role and a text as content"
    if not messages[-1]["content"].strip():
        return f"'{source.prompt_column}' is empty"
    if source.held_out and (answer is None or not str(answer).strip()):
        return f"no reference answer in '{source.answer_column}'"
    question = messages[-1]["content"]
    messages[-1]["content"] += config.prompt_suffix
    if config.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    try:
        text = prompt_text(messages, tokenizer, config)
        text.encode()
    except TemplateError as error:
        return f"the chat template refuses it: {error}"
    except UnicodeEncodeError:
        return "it holds half of a character (a lone surrogate), which is not text"
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) > config.max_prompt_tokens:
        return f"the prompt has {len(ids)} tokens, more than max_prompt_tokens {config.max_prompt_tokens}"
    return Prompt(ids, question, None if answer is None else str(answer))


def prompt_text(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", config: Config) -> str:
    """Returns the messages in the tokenizer's chat template, up to where the answer begins; plain without a template."""
    if not tokenizer.chat_template:
        return "\n\n".join(m["content"] for m in messages) + "\n"
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=config.enable_thinking
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _rows(source: Source, limit: int | None) -> Iterator[tuple[str, Any]]:
    """Yields (where it stands, the row); a row that can't even be read is the reason, as text."""
    if source.data == BUNDLED:
        from poweropd_lite.tiny.problems import problems

        count = limit if source.held_out and limit else BUNDLED_TRAINING_PROBLEMS
        for i, problem in enumerate(problems(0, count, source.held_out)):
            yield (
                f"bundled problem {i}",
                {source.prompt_column: problem.question, source.answer_column: str(problem.answer)},
            )
        return
    path = Path(source.data)
    if path.suffix in (".json", ".jsonl", ".parquet") or path.exists():
        yield from _file_rows(path, source.flag)
    else:
        yield from _hub_rows(source)


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
    for i, line in enumerate(text.split("\n"), 1):  # JSON Lines end at "\n" alone
        if not line.strip():
            continue
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
        raise UserError(
            f"can't load {source.data} (subset {source.subset}, split {source.split}) from the hub: {reason}\n"
            f"type {source.flag} with a hub id, or with a JSON, JSONL or Parquet file"
        ) from error
    yield from ((f"{source.data}, row {i}", row) for i, row in enumerate(data))
