"""The problems that a model is scored on: the paper's seven maths benchmarks, the bundled held-out set, anyone's own.

A benchmark comes from the hub or from a copy in a folder; a set of another size than the original is said to be one,
for its score is not comparable. Problems are read row by row, and one that can't be used is counted and named.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.config_files import nearest
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.problems.apart import Apart
from poweropd_lite.problems.files import SUFFIXES
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.problems.reading import Reader, say_skipped, usable
from poweropd_lite.problems.rows import BUNDLED_PROBLEMS, Source

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
HELD_OUT = "held-out"  # the benchmark that a run keeps of its own data
RESERVED = ("mean", "settings", "results", HELD_OUT)  # names of the evaluation's own


@dataclass(frozen=True)
class Benchmark:
    """A named set of problems; nothing is read yet."""

    name: str
    source: Source
    sizes: tuple[int, ...] = ()  # how many problems the whole set has; unknown if empty

    @property
    def graded_as(self) -> str:
        """The benchmark whose way of answering counts."""
        return BUNDLED if self.source.data == BUNDLED else self.name

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


def run_benchmarks(run: Config) -> list[str]:
    """Returns the names that the benchmarks of a run's own evaluation have in results; [] where it has none."""
    names = []
    for word in filter(None, map(str.strip, (run.eval_benchmarks or "").split(","))):
        try:
            names += [benchmark.name for benchmark in find_benchmarks(word)]
        except UserError:  # a file that is gone since
            names.append(Path(word).stem)
    return list(dict.fromkeys([*names, *([HELD_OUT] if run.hold_out else [])]))


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
    if path.suffix.lower() in SUFFIXES or os.path.exists(path):  # which is no error for a name too long
        if not os.path.exists(path):
            raise UserError(f"no file of problems at {path}; type {flag} with a JSON, JSONL or Parquet file")
        sizes = _HUB[path.stem][2] if path.stem in _HUB else ()  # a copy of a known one
        return Benchmark(path.stem or path.resolve().name, Source(name, flag=flag), sizes)
    if "/" in name:
        hub, _, rest = name.partition(":")
        subset, _, split = rest.partition(":")
        return Benchmark(hub.rsplit("/", 1)[-1], Source(hub, subset or None, split or "test", flag=flag))
    meant = nearest(name, (*ALL, "all", BUNDLED), otherwise="")
    known = f"{', '.join(ALL)}, all of them as 'all', {BUNDLED}, and files of problems such as my.jsonl"
    raise UserError(f"no benchmark named '{cut(name)}'{meant}; known are {known}")


def load_problems(
    benchmark: Benchmark,
    tokenizer: "PreTrainedTokenizerBase",
    settings: Any,
    limit: int | None,
    columns: tuple[str | None, str | None],
    say: Callable[[str], None],
    teacher: Apart | None = None,
    by_row: bool = False,
) -> Problems:
    """Returns a benchmark's problems, the first `limit` if given, having said what is odd about them.

    `columns` are of prompt and answer, None for the usual ones; `settings` is what make_prompt wants, `teacher` how
    one that is asked otherwise is asked. `by_row`: a user's function scores, so that they have their rows and need no
    answer. Raises UserError when nothing can be read or no row can be used.
    """
    source, known = benchmark.source, _HUB.get(benchmark.name, ("",))[0] == benchmark.source.data
    columns = (None, None) if known or source.data == BUNDLED else columns
    reader = Reader(tokenizer, settings, *columns, not by_row, to_score=True, keeps_rows=by_row, teacher=teacher)
    # training's own evaluation has --eval-benchmarks, and so --eval-prompt-column
    typed = [source.flag.replace("benchmarks", flag) for flag in ("prompt-column", "answer-column")]
    prompts, skipped, more = usable(source, reader, limit, limit, f"{source.flag}, {typed[0]} and {typed[1]}")
    count = len(prompts)
    say_skipped(skipped, count, source.data, say)
    if None in columns and not known and not benchmark.sizes:
        say(f"{source.data}: {reader.taken()}")
    for oddity in reader.oddities(source.data, typed[1]):
        say(oddity)
    if limit is not None and count < limit:
        say(f"{source.data} has {count} usable problems, fewer than the {limit} asked for")
    short = limit is not None and count == limit and (more or count < min(benchmark.sizes, default=0))
    whole = not skipped and not short and (not benchmark.sizes or count in benchmark.sizes)
    if benchmark.sizes and not whole and not short:
        sizes = " or ".join(f"{size:,}" for size in benchmark.sizes)
        say(f"{benchmark.name} has {count:,} usable problems here and {sizes} in the original: scores won't compare")
    return Problems(benchmark, prompts, whole)


def of_held_out(kept: Sequence[Prompt], data: str) -> Problems:
    """Returns the problems of those prompts that a run keeps of its own data that can be scored, by an answer or their row."""
    scored = [p for p in kept if p.answer is not None or p.row is not None]
    return Problems(Benchmark(HELD_OUT, Source(data)), scored, whole=True)
