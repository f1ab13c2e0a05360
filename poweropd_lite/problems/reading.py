"""Rows as prompts: from the columns that were named, or the usual ones; with the reference answer, where a row has one.

A row of messages that ends with the assistant's turn is a prompt and its reference. What was taken is counted, and so is
every row that can't be used, with the reason.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.base.files import changed_since, whole_folder, write_manifest
from poweropd_lite.base.progress import Counting
from poweropd_lite.base.stop import stopped_at_once
from poweropd_lite.grade.answers import boxed_answer, neighbouring_boxes
from poweropd_lite.problems.apart import Apart
from poweropd_lite.problems.files import decoded, digest_of
from poweropd_lite.problems.prompts import Prompt, Rendered, Skipped, cut_last_turn, render, tokenize
from poweropd_lite.problems.rows import Source, counted_rows, row_as_json, rows
from poweropd_lite.problems.stored import (
    ABOUT,
    FILES,
    Stored,
    alone,
    folder_of,
    is_large,
    messages_digests,
    without,
    writing,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_COLUMNS = ("problem", "question", "prompt", "messages", "conversations")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "solution")
_LONG = 200  # characters, which no final answer has
NO_ROWS = "\n  it has no rows"
_SHOWN = 5  # reasons and places that are named
_AT_ONCE = 256  # rows that are tokenized together
_COUNTS = ("turns", "boxes", "hashes", "long", "odd_errors")


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
    to_score: bool = False  # problems, of which one that the teacher can't be asked stays, for the student alone
    keeps_rows: bool = False  # prompts have their rows, for a user's function
    teacher: Apart | None = None  # how the teacher is asked, where that is otherwise
    columns: Counter[tuple[str, str]] = field(default_factory=Counter)  # prompt's and answer's ("" for none)
    turns: int = 0  # reference answers that are the assistant's turn
    boxes: int = 0  # taken from the box of a longer text
    hashes: int = 0  # taken from behind its last ####
    long: int = 0  # texts of several lines, or long ones, without a box: compared whole
    odd_errors: int = 0  # a column `error` that holds no largest difference

    @property
    def looked_at(self) -> set[str] | None:
        """The columns that are read, None for all."""
        if self.keeps_rows:
            return None
        prompts = PROMPT_COLUMNS if self.prompt_column is None else (self.prompt_column,)
        answers = ANSWER_COLUMNS if self.answer_column is None else (self.answer_column,)
        return {*prompts, *answers, "error", *(self.teacher.columns if self.teacher is not None else ())}

    def read(self, rows: Sequence[tuple[str, Any]]) -> list[Prompt | Skipped]:
        """Returns rows' prompts with their reference answers, or why they can't be used; each row with where it stands."""
        found = [self._cells(row) for _, row in rows]
        rendered = [cells.rendered for cells in found if not isinstance(cells, Skipped)]
        prompts = iter(self._with_teachers(tokenize(rendered, self.tokenizer, self.settings), found))
        done = [cells if isinstance(cells, Skipped) else self._answered(cells, next(prompts)) for cells in found]
        return [
            replace(row, where=where) if isinstance(row, Skipped) else row
            for (where, _), row in zip(rows, done, strict=True)
        ]

    def _with_teachers(
        self, prompts: list[Prompt | Skipped], found: list["_Cells | Skipped"]
    ) -> list[Prompt | Skipped]:
        """Returns prompts with what the teacher reads. Of problems to be scored those without it stay, for the student alone."""
        if self.teacher is None:
            return prompts
        texts = [cells.for_teacher for cells in found if not isinstance(cells, Skipped)]
        done: list[Prompt | Skipped] = []
        for prompt, ids in zip(prompts, self.teacher.tokenize(texts), strict=True):
            if isinstance(prompt, Skipped) or (isinstance(ids, Skipped) and self.to_score):
                done.append(prompt)
            else:
                done.append(ids if isinstance(ids, Skipped) else replace(prompt, teacher_ids=ids))
        return done

    def _cells(self, row: Any) -> "_Cells | Skipped":
        """Returns what is taken from a row, or why nothing is; a row that could not even be read is that reason."""
        if isinstance(row, str):
            return Skipped(row)
        name, found = cut(", ".join(map(str, row)), 300), []
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
        rendered = render(value, self.tokenizer, self.settings, prompt_column)
        if isinstance(rendered, Skipped):
            return rendered
        apart, whole = self.teacher.render(rendered, row) if self.teacher is not None else "", None
        if self.keeps_rows:
            whole = row_as_json(row)
        taken = prompt_column, answer_column or "", text, answer, from_turn, row.get("error")
        return _Cells(rendered, *taken, apart, whole)

    def _answered(self, cells: "_Cells", prompt: Prompt | Skipped) -> Prompt | Skipped:
        """Returns a row's prompt with its answer, counted."""
        if isinstance(prompt, Skipped):
            return prompt
        text, answer, of_column = cells.text, cells.answer, cells.answer is not None and not cells.from_turn
        self.columns[cells.prompt_column, cells.answer_column if of_column else ""] += 1
        self.turns += cells.from_turn
        tolerance, error = _tolerance(cells.error), str(cells.error or 0).strip().lower()
        if answer is not None:
            worked = isinstance(text, str) and len(text) > len(answer) + 20 and cells.answer_column != "solution"
            self.hashes += worked and "####" in str(text)
            self.boxes += worked and "\\boxed" in str(text) and "####" not in str(text)
            self.long += len(answer) > _LONG or ("\n" in answer and "\\begin" not in answer)
            self.odd_errors += tolerance is None and error not in ("", "0", "0.0", "none", "nan", "null")
        return replace(prompt, answer=answer, tolerance=tolerance, row=cells.row)

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


@dataclass(frozen=True)
class _Cells:
    """What is taken from a row."""

    rendered: Rendered
    prompt_column: str
    answer_column: str  # "" for none
    text: Any  # that the answer was taken from
    answer: str | None
    from_turn: bool  # the text is the assistant's turn
    error: Any  # of the column `error`
    for_teacher: str | Skipped  # in its own chat template, where it is asked apart
    row: str | None  # all of it as JSON, where it is kept


def load_prompts(
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    teacher: Apart | None = None,
    keep_rows: bool = False,
) -> tuple[Sequence[Prompt], list[Skipped]]:
    """Returns the usable training prompts (the first `limit`, if given) and the rows among them that can't be used.

    With `keep_rows` prompts have their rows. Those of a large file are made once and kept (stored.py). `say` gets which columns were taken. Raises UserError when the data can't be read or has no usable row.
    """
    source = Source(config.data, config.data_subset, config.data_split)
    columns = (None, None) if config.data == BUNDLED else (config.prompt_column, config.answer_column)
    reader, flags = (
        Reader(tokenizer, config, *columns, teacher=teacher, keeps_rows=keep_rows),
        "--data, --prompt-column, --answer-column and --max-prompt-tokens",
    )
    prompts: Sequence[Prompt]
    if limit is None and config.data != BUNDLED and is_large(Path(config.data)):
        prompts, skipped = _kept(source, reader, flags, say)
    else:
        prompts, skipped, _ = usable(source, reader, limit, None, flags)
    if config.data != BUNDLED:
        found = reader.turns or config.answer_column or any(answer for _, answer in reader.columns)
        say(f"{config.data}: {reader.taken()}{'' if found else ' (--answer-column names one)'}")
    if config.hold_out:
        for oddity in reader.oddities(config.data, "--answer-column"):
            say(oddity)
    return prompts, skipped


def _kept(source: Source, reader: Reader, flags: str, say: Callable[[str], None]) -> tuple[Stored, list[Skipped]]:
    """Returns what `usable` would of a large file, from where its prompts are kept or, at first, having put them there."""
    path, c = Path(source.data), reader.settings
    asked = [c.prompt_suffix, c.system_prompt, c.enable_thinking, c.template_kwargs, c.max_prompt_tokens]
    if (view := reader.teacher) is not None:
        asked += [view.options, view.prompt, str(view.tokenizer.chat_template)]
    settings, content = [*asked, reader.prompt_column, reader.answer_column, reader.keeps_rows], digest_of(path)
    folder = folder_of(path, content, reader.tokenizer, settings)
    with alone(folder, say):
        fault = changed_since(folder, FILES) if folder.is_dir() else "not there"
        if fault is None:
            say(f"{path}: its prompts are in {folder}")
        else:
            damaged = f"; what is there is damaged ({fault})" if folder.is_dir() else ""
            say(f"{path} is large: its prompts are made once, into {folder}{damaged}")
            _keep(folder, content, source, reader, flags, say)
        prompts = Stored(folder)
    about = prompts.about
    reader.columns = Counter({(prompt, answer): count for prompt, answer, count in about["columns"]})
    for name in _COUNTS:
        setattr(reader, name, about["counts"][name])
    return prompts, [Skipped(**{**row, "where": f"{path}{row['where']}"}) for row in about["skipped"]]


def _keep(
    folder: Path, content: str, source: Source, reader: Reader, flags: str, say: Callable[[str], None]
) -> None:  # fmt: skip
    """Reads a large file of digest `content`; keeps its prompts, and what is to be said of it, in a folder."""
    path, skipped, done = str(Path(source.data)), list[Skipped](), 0
    # A signal that else would wait for the end of a step ends this at once, and the folder is gone.
    with stopped_at_once("stopped: nothing is kept"), whole_folder(folder) as new:
        found, total = counted_rows(source, reader.looked_at)
        with writing(new) as writer, Counting("rows", say=say) as counting:
            for batch in _batches(found, reader, None):
                for row in batch:
                    if isinstance(row, Prompt):
                        writer.add(row)
                skipped = by_reason([*skipped, *(row for row in batch if isinstance(row, Skipped))])
                done += len(batch)
                counting.show(f"{path}: rows", done, total if done <= total else done + 1)  # an array has no such total
        if not writer.tokens["student"]:
            raise no_usable(source, skipped, flags)
        if digest_of(Path(path)) != content:
            raise UserError(f"{path} changed while it was read; type the command again")
        counts = {name: getattr(reader, name) for name in _COUNTS}
        columns = [[*names, count] for names, count in reader.columns.items()]
        rest = [asdict(row) | {"where": row.where.removeprefix(path)} for row in skipped]  # the file may be moved
        about = {
            "counts": counts,
            "columns": columns,
            "skipped": rest,
            "tokens": {role: sorted(used) for role, used in writer.tokens.items()},
        }
        (new / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        write_manifest(new, [new / name for name in FILES])


def usable(
    source: Source, reader: Reader, limit: int | None, bundled: int | None, flags: str
) -> tuple[list[Prompt], list[Skipped], bool]:
    """Returns the rows that can be read as prompts (the first `limit`), those that can't, and if there are more.

    `bundled` is how many of the bundled problems there are. Raises UserError, to check `flags`, where no row is usable.
    """
    prompts: list[Prompt] = []
    skipped: list[Skipped] = []
    found = rows(source, bundled, reader.looked_at)
    for batch in _batches(found, reader, limit):
        prompts += (row for row in batch if isinstance(row, Prompt))
        skipped += (row for row in batch if isinstance(row, Skipped))
    if not prompts:
        raise no_usable(source, skipped, flags)
    return prompts, skipped, limit is not None and next(found, None) is not None


def _batches(found: Iterator[tuple[str, Any]], reader: Reader, limit: int | None) -> Iterator[list[Prompt | Skipped]]:
    """Yields rows as they are read, some at a time, until `limit` of them are prompts."""
    used = 0
    while batch := list(islice(found, _AT_ONCE if limit is None else min(_AT_ONCE, limit - used))):
        done = reader.read(batch)
        used += sum(isinstance(row, Prompt) for row in done)
        yield done


def no_usable(source: Source, skipped: list[Skipped], flags: str) -> UserError:
    """Returns the error of a source without a usable row."""
    return UserError(f"no usable problem in {source.data}:{_reasons(skipped) or NO_ROWS}\ncheck {flags}")


def say_skipped(skipped: list[Skipped], used: int, data: str, say: Callable[[str], None]) -> None:
    """Says how many rows could not be used, and why not: each reason once, with the first place."""
    if out := sum(row.count for row in skipped):
        say(f"{out:,} of {out + used:,} rows of {data} can't be used:{_reasons(skipped)}")


def _reasons(skipped: list[Skipped]) -> str:
    lines = [
        f"\n  {row.where}{f' and {row.count - 1:,} more' if row.count > 1 else ''}: {row.reason}"
        for row in by_reason(skipped)
    ]
    return "".join(lines[:_SHOWN]) + ("\n  ..." if len(lines) > _SHOWN else "")


def by_reason(skipped: Iterable[Skipped]) -> list[Skipped]:
    """Returns the first of each reason, with the count of all; rows that are too long have one reason."""
    first: dict[str, Skipped] = {}
    for row in skipped:
        reason = "longer than max_prompt_tokens" if row.too_long else row.reason
        before = first.get(reason)
        first[reason] = row if before is None else replace(before, count=before.count + row.count)
    return list(first.values())


def hold_out(prompts: Sequence[Prompt], count: int, data: str) -> tuple[Sequence[Prompt], list[Prompt]]:
    """Returns the prompts to train on, and `count` different ones that are kept out, each with all its copies.

    They are those whose messages have the smallest SHA-256, so that rows that are added, moved or tokenized otherwise move
    none but what they displace. Raises UserError if none is left to train on.
    """
    smallest: list[bytes] = []  # count + 1 of the digests seen: a million at once would be 100 MB
    digests = messages_digests(prompts)
    while some := set(islice(digests, 8192)):
        smallest = sorted(some.union(smallest))[: count + 1]
    if len(smallest) <= count:
        raise UserError(
            f"--hold-out {count} leaves no prompt of {data} to train on: it has {len(smallest)} different ones; type a "
            "smaller number"
        )
    out, held = [], dict[bytes, Prompt]()
    for place, digest in enumerate(messages_digests(prompts)):
        if digest < smallest[count]:
            out.append(place)
            if digest not in held or held[digest].answer is None:  # of copies the first that has an answer
                held[digest] = prompts[place]
    return without(prompts, out), list(held.values())


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
