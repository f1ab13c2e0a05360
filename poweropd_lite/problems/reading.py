"""Rows as prompts: from the columns that were named, or the usual ones; with the reference answer, where a row has one.

A row of messages that ends with the assistant's turn is a prompt and its reference. What was taken is counted, and so is
every row that can't be used, with the reason.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.grade.answers import boxed_answer, neighbouring_boxes
from poweropd_lite.problems.prompts import Prompt, Skipped, make_prompt
from poweropd_lite.problems.rows import Source, decoded, rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_COLUMNS = ("problem", "question", "prompt", "messages", "conversations")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "solution")
_LONG = 200  # characters, which no final answer has
_SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
NO_ROWS = "\n  it has no rows"
_SHOWN = 5  # reasons and places that are named


@dataclass
class Reader:
    """Reads rows of one source as prompts, and counts what it took from where.

    `settings` is what make_prompt wants. Of columns that are not named a row's first usual one is taken that is not empty.
    """

    tokenizer: "PreTrainedTokenizerBase"
    settings: Any
    prompt_column: str | None = None
    answer_column: str | None = None
    must_answer: bool = False  # a row without a reference answer can't be used
    columns: Counter[tuple[str, str]] = field(default_factory=Counter)  # prompt's and answer's ("" for none)
    turns: int = 0  # reference answers that are the assistant's turn
    boxes: int = 0  # taken from the box of a longer text
    hashes: int = 0  # taken from behind its last ####
    long: int = 0  # texts of several lines, or long ones, without a box: compared whole
    odd_errors: int = 0  # a column `error` that holds no largest difference

    def read(self, row: dict) -> Prompt | Skipped:
        """Returns a row's prompt with its reference answer, or why it can't be used."""
        name, found = ", ".join(map(str, row)), []
        for asked, usual in ((self.prompt_column, PROMPT_COLUMNS), (self.answer_column, ANSWER_COLUMNS)):
            wanted = usual if asked is None else (asked,)
            here = [column for column in wanted if column in row]
            filled = (column for column in here if row[column] not in (None, "", []))
            found.append(next(filled, here[0] if here else None))
        prompt_column, answer_column = found
        if prompt_column is None or (self.must_answer and answer_column is None and self.answer_column is not None):
            missing = (self.prompt_column, PROMPT_COLUMNS) if prompt_column is None else (self.answer_column, ())
            return Skipped(f"no column {missing[0] or ' or '.join(missing[1])}; it has {name}")
        value, turn = cut_last_turn(row[prompt_column])
        text = decoded(row[answer_column]) if answer_column is not None else None
        answer = gold_answer(text, answer_column or "")
        from_turn = answer is None and turn is not None
        if from_turn:
            text, answer = turn, gold_answer(turn)
        if answer is None and self.must_answer:
            missing_all = f"no column {' or '.join(ANSWER_COLUMNS)}; it has {name}"
            return Skipped(f"no reference answer in '{answer_column}'" if answer_column else missing_all)
        prompt = make_prompt(value, self.tokenizer, self.settings, prompt_column)
        if not isinstance(prompt, Prompt):
            return prompt
        self.columns[prompt_column, (answer_column or "") if answer is not None and not from_turn else ""] += 1
        self.turns += from_turn
        tolerance, error = _tolerance(row.get("error")), str(row.get("error") or 0).strip().lower()
        if answer is not None:
            worked = isinstance(text, str) and len(text) > len(answer) + 20 and answer_column != "solution"
            self.hashes += worked and "####" in str(text)
            self.boxes += worked and "\\boxed" in str(text) and "####" not in str(text)
            self.long += len(answer) > _LONG or ("\n" in answer and "\\begin" not in answer)
            self.odd_errors += tolerance is None and error not in ("", "0", "0.0", "none", "nan", "null")
        return replace(prompt, answer=answer, tolerance=tolerance)

    def taken(self) -> str:
        """Returns which columns were taken, such as "prompts from 'question', answers from 'answer'"."""
        total, parts = self.columns.total(), []
        for what, at in (("prompts", 0), ("answers", 1)):
            counts: Counter[str] = Counter()
            for columns, count in self.columns.items():
                counts[columns[at]] += count
            named = [(name, count) for name, count in counts.most_common() if name]
            shown = [f"'{name}'" + f" ({count:,})" * (count < total) for name, count in named]
            parts.append(f"{what} from {', '.join(shown)}" if shown else f"no {what} in a column")
        if self.turns:
            parts[1] = f"answers from the assistant's turn that ends them ({self.turns:,})" + (
                f", {parts[1].removeprefix('answers ')}" if parts[1].startswith("answers") else ""
            )
        return ", ".join(parts)

    def oddities(self, data: str, flag: str) -> list[str]:
        """Returns what is worth saying of the reference answers in `data`; `flag` is how --answer-column is typed."""
        other = f"type {flag} with a column of final answers"
        notes = [
            ("the answer is what stands in the last box of a worked solution", self.boxes),
            ("the answer is what stands behind the last ####", self.hashes),
            (f"the answer looks like a worked solution without a box, which no answer will equal; {other}", self.long),
            ("column 'error' holds no largest difference (such as 1e-1), and is not used", self.odd_errors),
        ]
        return [f"{number:,} problems of {data}: {what}" for what, number in notes if number]


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


def load_prompts(
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Prompt], list[Skipped]]:
    """Returns the usable training prompts (the first `limit`, if given) and the rows among them that can't be used.

    `say` gets which columns were taken, where the config does not name them. Raises UserError when the data can't be read
    or has no usable row.
    """
    source = Source(config.data, config.data_subset, config.data_split)
    columns = (None, None) if config.data == BUNDLED else (config.prompt_column, config.answer_column)
    reader = Reader(tokenizer, config, *columns)
    prompts, skipped, _ = usable(source, reader, limit, None, "--data, --prompt-column and --max-prompt-tokens")
    if config.data != BUNDLED and (config.prompt_column is None or config.answer_column is None):
        say(f"{config.data}: {reader.taken()}")
    if config.hold_out:
        for oddity in reader.oddities(config.data, "--answer-column"):
            say(oddity)
    return prompts, skipped


def usable(
    source: Source, reader: Reader, limit: int | None, bundled: int | None, flags: str
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
        prompt = Skipped(row) if isinstance(row, str) else reader.read(row)
        if isinstance(prompt, Prompt):
            prompts.append(prompt)
        else:
            skipped.append(replace(prompt, where=where))
    if not prompts:
        raise UserError(f"no usable problem in {source.data}:{_reasons(skipped) or NO_ROWS}\ncheck {flags}")
    return prompts, skipped, more


def say_skipped(skipped: list[Skipped], used: int, data: str, say: Callable[[str], None]) -> None:
    """Says how many rows could not be used, and why not: each reason once, with the first place."""
    if skipped:
        say(f"{len(skipped):,} of {len(skipped) + used:,} rows of {data} can't be used:{_reasons(skipped)}")


def _reasons(skipped: list[Skipped]) -> str:
    groups: dict[str, list[Skipped]] = {}
    for row in skipped:
        groups.setdefault("longer than max_prompt_tokens" if row.too_long else row.reason, []).append(row)
    lines = [
        f"\n  {rows[0].where}{f' and {len(rows) - 1:,} more' if rows[1:] else ''}: {rows[0].reason}"
        for rows in groups.values()
    ]
    return "".join(lines[:_SHOWN]) + ("\n  ..." if len(lines) > _SHOWN else "")


def hold_out(prompts: Sequence[Prompt], count: int, data: str) -> tuple[list[Prompt], list[Prompt]]:
    """Returns the prompts to train on, and `count` different ones that are kept out, each with all its copies.

    They are those whose messages have the smallest SHA-256, so that rows that are added, moved or tokenized otherwise move
    none but what they displace. Raises UserError if none is left to train on.
    """
    keys = [hashlib.sha256(json.dumps(prompt.messages).encode()).digest() for prompt in prompts]
    different = sorted(set(keys))
    if count >= len(different):
        raise UserError(
            f"--hold-out {count} leaves no prompt of {data} to train on: it has {len(different)} different ones; type a "
            "smaller number"
        )
    kept = set(different[:count])
    held: dict[bytes, Prompt] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        if key in kept and (key not in held or held[key].answer is None):  # of copies the first that has an answer
            held[key] = prompt
    return [prompt for key, prompt in zip(keys, prompts, strict=True) if key not in kept], list(held.values())


def gold_answer(value: Any, column: str = "answer") -> str | None:
    r"""Returns the reference answer in a cell: after the last `####`, in the last box (or boxes side by side), or all of it.

    A list of answers is joined by commas. None if there is none, or in bytes that are no text.
    """
    if isinstance(value, list):
        return ", ".join(text for v in value if (text := gold_answer(v, column))) or None
    value = decoded(value)
    if (
        value is None
        or isinstance(value, bool | dict | bytes)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()  # 27.0 of amc23
    if text != text.encode("utf-8", "replace").decode():  # half of a character
        return None
    if "####" in text:
        text = text.rsplit("####", 1)[1].strip()
        return (text.replace(",", "") if re.fullmatch(r"-?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text) or None
    return neighbouring_boxes(text) or boxed_answer(text) or (None if column == "solution" else text) or None


def _tolerance(value: Any) -> float | None:
    """OlympiadBench's column `error`: 1e-1, where an answer is a measured number; of several the smallest, without units."""
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    parts = [re.fullmatch(r"(\d*\.?\d+(?:[eE][+-]?\d{1,2})?)(?: [^\d,%]*)?", part.strip()) for part in text.split(",")]
    numbers = [float(part[1]) for part in parts if part]
    return min(numbers) if len(numbers) == len(parts) and 0 < min(numbers) < math.inf else None
