"""The problems that a model is scored on: the paper's seven maths benchmarks, the bundled held-out set, anyone's own.

A benchmark comes from the hub or from a copy in a folder; a set of another size than the original is said to be one,
for its score is not comparable. Problems are read row by row, and one that can't be used is counted and named.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.config_files import nearest
from poweropd_lite.base.errors import UserError
from poweropd_lite.grade.answers import boxed_answer, neighbouring_boxes
from poweropd_lite.problems.prompts import (
    BUNDLED_PROBLEMS,
    Prompt,
    Skipped,
    Source,
    decoded,
    make_prompt,
    say_skipped,
    usable,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUB = {  # the paper's seven
    "gsm8k": ("openai/gsm8k", "main", (1319,)),
    "math500": ("HuggingFaceH4/MATH-500", None, (500,)),
    "amc23": ("math-ai/amc23", None, (40,)),
    "aime24": ("math-ai/aime24", None, (30,)),
    "aime25": ("math-ai/aime25", None, (30,)),
    "minerva": ("math-ai/minervamath", None, (272,)),
    "olympiadbench": ("math-ai/olympiadbench", None, (674, 675)),  # two copies go round, one row apart
}
ALL = tuple(_HUB)
PROMPT_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "solution")
SUFFIXES = (".jsonl", ".json", ".parquet")
_LONG = 200  # characters, which no final answer has
RESERVED = ("mean", "settings", "results")  # names of the evaluation's own


@dataclass(frozen=True)
class Benchmark:
    """A named set of problems; nothing is read yet."""

    name: str
    source: Source
    sizes: tuple[int, ...] = ()  # how many problems the whole set has; unknown if empty

    @property
    def longest(self) -> int:
        """How many tokens an answer may have, unless the user says another number."""
        return 112 if self.source.data == BUNDLED else 4096  # bundled answers have fewer than 90; 4,096 as in the paper


@dataclass(frozen=True)
class Problems:
    """A benchmark's problems, ready to be asked."""

    benchmark: Benchmark
    prompts: list[Prompt]
    whole: bool  # all of the set was read, and it has the size that it should have


def find_benchmarks(text: str, folder: str | None = None, flag: str = "--benchmarks") -> list[Benchmark]:
    """Returns the benchmarks of a comma-separated list, reading none of them; raises UserError for an unknown name."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = [name for word in words for name in (ALL if word == "all" else (word,))]
    if not names:
        raise UserError(f"{flag} names no benchmark; known are {', '.join((*ALL, 'all', BUNDLED))}, and files")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"no folder {folder}; type --benchmark-folder with one that holds files such as math500.jsonl")
    found = [_find(name, folder, flag) for name in dict.fromkeys(names)]
    for name in (b.name for b in found):
        if name in RESERVED or not re.fullmatch(r"[\w][\w. -]{0,99}", name):
            mend = "rename the file (letters, digits, '.', '_', '-')"
            raise UserError(f"a benchmark can't be named '{name}': results go by its name; {mend}")
        if sum(b.name == name for b in found) > 1:
            raise UserError(f"two benchmarks are named {name}; rename a file, for results go by name")
    return found


def _find(name: str, folder: str | None, flag: str) -> Benchmark:
    if name == BUNDLED:
        return Benchmark(BUNDLED, Source(BUNDLED, held_out=True, flag=flag), (BUNDLED_PROBLEMS[True],))
    if name in _HUB:
        hub, subset, sizes = _HUB[name]
        if folder is None:
            return Benchmark(name, Source(hub, subset, "test", flag=flag), sizes)
        copies = [path for suffix in SUFFIXES if (path := Path(folder, name + suffix)).is_file()]
        if not copies:
            mend = "leave out --benchmark-folder to ask the hub"
            raise UserError(f"{folder} holds no {name}.jsonl (or .json or .parquet); {mend}")
        return Benchmark(name, Source(str(copies[0]), flag=flag), sizes)
    path = Path(name)
    if path.suffix in SUFFIXES or path.is_file():
        if not path.is_file():
            raise UserError(f"no file of problems at {path}; type {flag} with a JSON, JSONL or Parquet file")
        sizes = _HUB[path.stem][2] if path.stem in _HUB else ()  # a copy of a known one
        return Benchmark(path.stem, Source(name, flag=flag), sizes)
    if "/" in name:
        hub, _, rest = name.partition(":")
        subset, _, split = rest.partition(":")
        return Benchmark(hub.rsplit("/", 1)[-1], Source(hub, subset or None, split or "test", flag=flag))
    meant = nearest(name, (*ALL, "all", BUNDLED), otherwise="")
    known = f"{', '.join(ALL)}, all of them as 'all', {BUNDLED}, and files of problems such as my.jsonl"
    raise UserError(f"no benchmark named '{name}'{meant}; known are {known}")


def load_problems(
    benchmark: Benchmark,
    tokenizer: "PreTrainedTokenizerBase",
    settings: Any,
    limit: int | None,
    columns: tuple[str | None, str | None],
    say: Callable[[str], None],
) -> Problems:
    """Returns a benchmark's problems, the first `limit` if given, having said what is odd about them.

    `columns` are of prompt and answer, None for the usual ones; `settings` is what data.make_prompt wants. Raises
    UserError when nothing can be read or no row has a problem and its answer.
    """
    source, seen = benchmark.source, _Seen()
    flags = f"{source.flag}, {_typed(source, 'prompt-column')} and {_typed(source, 'answer-column')}"
    found = usable(source, lambda r: _read(r, benchmark, tokenizer, settings, columns, seen), limit, limit, flags)
    prompts, skipped, more = found
    count = len(prompts)
    say_skipped(skipped, count, source.data, say)
    for what, number in seen.notes(source):
        say(f"{number:,} problems of {source.data}: {what}")
    if limit is not None and count < limit:
        say(f"{source.data} has {count} usable problems, fewer than the {limit} asked for")
    short = limit is not None and count == limit and (more or count < min(benchmark.sizes, default=0))
    whole = not skipped and not short and (not benchmark.sizes or count in benchmark.sizes)
    if benchmark.sizes and not whole and not short:
        sizes = " or ".join(f"{size:,}" for size in benchmark.sizes)
        say(f"{benchmark.name} has {count:,} usable problems here and {sizes} in the original: scores won't compare")
    return Problems(benchmark, prompts, whole)


@dataclass
class _Seen:
    """What answers a benchmark's rows had, counted."""

    boxes: int = 0  # taken from the box of a longer text
    long: int = 0  # texts of several lines, or long ones, without a box: compared whole
    odd_errors: int = 0  # a column `error` that holds no largest difference

    def notes(self, source: Source) -> list[tuple[str, int]]:
        """Returns what is worth saying, and of how many rows."""
        other = f"type {_typed(source, 'answer-column')} with a column of final answers"
        notes = [
            ("the answer is what stands in the last box of a worked solution", self.boxes),
            (f"the answer looks like a worked solution without a box, which no answer will equal; {other}", self.long),
            ("column 'error' holds no largest difference (such as 1e-1), and is not used", self.odd_errors),
        ]
        return [(what, number) for what, number in notes if number]


def _typed(source: Source, flag: str) -> str:
    """The flag as it is typed: training's own evaluation has --eval-benchmarks, and so --eval-prompt-column."""
    return source.flag.replace("benchmarks", flag)


def _read(
    row: dict, benchmark: Benchmark, tokenizer: Any, settings: Any, columns: tuple, seen: _Seen
) -> Prompt | Skipped:
    hub = _HUB.get(benchmark.name, ("",))[0] == benchmark.source.data  # whose columns are known
    asked, answered = (None, None) if hub or benchmark.source.data == BUNDLED else columns
    found = []
    # GSM8K and AIME 2024 on the hub have their answers at the end of a text; a row may have several of the columns.
    for name, usual in ((asked, PROMPT_COLUMNS), (answered, ANSWER_COLUMNS)):
        wanted = usual if name is None else (name,)
        if (column := next((c for c in wanted if c in row), None)) is None:
            return Skipped(f"no column {' or '.join(wanted)}; it has {', '.join(map(str, row))}")
        found.append(column)
    prompt_column, answer_column = found
    text = decoded(row[answer_column])
    answer = gold_answer(text, answer_column)
    if answer is None:
        return Skipped(f"no reference answer in '{answer_column}'")
    prompt = make_prompt(row[prompt_column], tokenizer, settings, prompt_column)
    if not isinstance(prompt, Prompt):
        return prompt
    worked = isinstance(text, str) and len(text) > len(answer) + 20 and answer_column != "solution"
    seen.boxes += worked and "\\boxed" in text
    seen.long += len(answer) > _LONG or ("\n" in answer and "\\begin" not in answer)
    tolerance, error = _tolerance(row.get("error")), str(row.get("error") or 0).strip().lower()
    seen.odd_errors += tolerance is None and error not in ("", "0", "0.0", "none", "nan", "null")
    return replace(prompt, answer=answer, tolerance=tolerance)


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
