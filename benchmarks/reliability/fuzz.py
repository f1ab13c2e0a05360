"""Property-based fuzz (hypothesis) of configs, rows of data, checkpoints and the grader: no traceback, whatever comes in.

`python benchmarks/reliability/fuzz.py --minutes 5` (60 for results/fuzz.json). A config is read or refused, and read again from what
it is written as; rows and whole files of problems are read, skipped with a reason or refused; a checkpoint whose manifest fits is
taken as it was saved, or refused; the grader says True or False, True of an answer equal to the reference, and the same twice.
"""

import argparse
import contextlib
import copy
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
import trials
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from trials import Folders, Tally

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_manifest
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.grade import is_correct
from poweropd_lite.models.student import load_student
from poweropd_lite.problems.reading import load_prompts
from poweropd_lite.run.checkpoint import checkpoints, load_checkpoint

HARD = st.sampled_from(["", " ", "\x00", "\u2028", "\ud800", "1e400", "-0", "none", "null", "true", "~", "\\boxed{", "####", "{{", "}}", "$", "\\frac", "<|im_end|>"])  # fmt: skip
TEXT = st.text(max_size=30) | HARD | st.text(alphabet="0123456789.,-+*/^(){}[]\\$%= abefrtqxπ√", max_size=40)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12)  # fmt: skip
NAMES = st.sampled_from(sorted(Config.model_fields))
COLUMN = st.sampled_from(["problem", "question", "prompt", "messages", "conversations", "answer", "solution", "error"])
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": VALUE})
ROW = st.dictionaries(COLUMN | TEXT, VALUE | st.lists(TURN, max_size=4), max_size=5)
NUMBER = st.integers(-(10**6), 10**6)


def quietly(work: Callable[[], Any]) -> Any:
    """Runs it without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


class Fuzz:
    """What is fuzzed, with what each needs made once."""

    def __init__(self, place: Path) -> None:
        self.config = load_config("bundled")
        self.tokenizer = load_pair(self.config).tokenizer
        self.place = place  # with a run
        self.run_config = load_config(self.place / "run" / "config.yaml")
        self.checkpoint = checkpoints(self.place / "run" / "checkpoints")[-1]
        self.state = json.loads((self.checkpoint / "state.json").read_text(encoding="utf-8"))
        self.tensors = load_file(self.checkpoint / "trained.safetensors")
        transformers.utils.logging.disable_progress_bar()
        self.student = load_student(self.run_config, torch.device("cpu"), torch.float32)

    def of_config(self, values: dict[str, Any]) -> None:
        """Settings, as keywords and as a file."""
        with contextlib.suppress(UserError):
            config = load_config("bundled", **values)
            file = self.place / "written.yaml"
            file.write_text(dump_yaml(config), encoding="utf-8")
            assert load_config(file) == config

    def of_yaml(self, text: str) -> None:
        """A file of settings."""
        file = self.place / "settings.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(UserError):
            load_config(file)

    def of_rows(self, rows: list[dict[str, Any]]) -> None:
        """A file of rows, all of which are counted."""
        file = self.place / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = load_config("bundled", data=str(file), prompt_suffix="", max_prompt_tokens=64)
        with contextlib.suppress(UserError):
            prompts, skipped = quietly(lambda: load_prompts(config, self.tokenizer))
            assert len(prompts) + len(skipped) == len(rows)
            assert all(0 < len(p.ids) <= 64 for p in prompts)

    def of_file(self, content: bytes, suffix: str) -> None:
        """A file of anything."""
        file = self.place / f"data{suffix}"
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            quietly(lambda: load_prompts(load_config("bundled", data=str(file)), self.tokenizer))

    def of_state(self, path: list[int], value: Any) -> None:
        """A checkpoint with one value of state.json replaced, or taken out, under a manifest that fits."""
        state = copy.deepcopy(self.state)
        node: Any = state
        for number in path:
            keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                return
            key = keys[number % len(keys)]
            if isinstance(node[key], dict | list) and node[key] and number != path[-1]:
                node = node[key]
                continue
            if value == "out":
                del node[key]
            else:
                node[key] = value
            break
        self._load({"state.json": json.dumps(state).encode("utf-8")})

    def of_tensor(self, number: int, shape: list[int], dtype: str, fill: float) -> None:
        """A checkpoint with one tensor replaced."""
        names = sorted(self.tensors)
        other = torch.full(shape, fill if dtype.startswith("float") else 1).to(getattr(torch, dtype))
        tensors = {**self.tensors, names[number % len(names)]: other}
        with tempfile.TemporaryDirectory() as place:
            save_file(tensors, f"{place}/t.safetensors")
            self._load({"trained.safetensors": Path(place, "t.safetensors").read_bytes()})

    def _load(self, files: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, self.checkpoint.name)
            folder.mkdir()
            for file in self.checkpoint.iterdir():
                (folder / file.name).write_bytes(files.get(file.name) or file.read_bytes())
            write_manifest(folder, [file for file in folder.iterdir() if file.name != "manifest.json"])
            parameters = list(self.student.trainable().values())
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            with contextlib.suppress(UserError):
                load_checkpoint(folder, self.student, torch.optim.AdamW(parameters), scaler, self.run_config)
                assert all(p.isfinite().all() for p in parameters)

    def of_grader(self, answer: str, gold: str) -> None:
        """Any answer and any reference."""
        said = is_correct(answer, gold)
        assert isinstance(said, bool) and is_correct(answer, gold) == said

    def of_numbers(self, top: int, bottom: int, other: int) -> None:
        """Numbers are right where they are equal, however they are written, and wrong elsewhere."""
        value, bottom = Fraction(top, max(1, abs(bottom))), max(1, abs(bottom))
        written = f"\\frac{{{top}}}{{{bottom}}}"
        assert is_correct(f"so it is \\boxed{{{written}}}", str(value)), (written, str(value))
        assert is_correct(f"\\boxed{{{other}}}", written) == (other == value), (other, written)

    def targets(self) -> dict[str, Callable[[], Any]]:
        """Returns what is fuzzed, each with where its examples come from."""
        settings_file = TEXT | st.dictionaries(NAMES | TEXT, VALUE, max_size=4).map(lambda v: json.dumps(v))
        lines = st.lists(NAMES.flatmap(lambda n: TEXT.map(lambda v: f"{n}: {v}")), max_size=4).map("\n".join)
        json_bytes = VALUE.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=200)
        suffixes = st.sampled_from([".json", ".jsonl", ".parquet", ".txt", ""])
        dtypes = st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"])
        shapes = st.lists(st.integers(0, 9), max_size=3)
        return {
            "config": given(st.dictionaries(NAMES, VALUE, max_size=4))(self.of_config),
            "yaml": given(settings_file | lines)(self.of_yaml),
            "rows": given(st.lists(ROW, min_size=1, max_size=5))(self.of_rows),
            "file": given(json_bytes, suffixes)(self.of_file),
            "state": given(st.lists(st.integers(0, 1000), min_size=1, max_size=5), VALUE | st.just("out"))(
                self.of_state
            ),
            "tensor": given(st.integers(0, 99), shapes, dtypes, st.floats(width=32))(self.of_tensor),
            "grader": given(TEXT | TEXT.map(lambda t: f"\\boxed{{{t}}}"), TEXT)(self.of_grader),
            "numbers": given(NUMBER, NUMBER, NUMBER | st.integers(-9, 9))(self.of_numbers),
        }


def fuzz(work: Callable[..., Any], number: int, examples: int, count: Callable[[], None]) -> str | None:
    """Runs so many examples, of the seed `number`; returns the smallest that failed, None if none did."""
    inner = work.hypothesis.inner_test

    def counted(*args: Any, **named: Any) -> None:
        count()
        inner(*args, **named)

    work.hypothesis.inner_test = counted
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    checks = list(HealthCheck)
    asked = settings(max_examples=examples, deadline=None, database=None, phases=phases, suppress_health_check=checks)
    try:
        seed(number)(asked(work))()
    except Exception as error:
        each = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        return " | ".join(f"{type(e).__name__}: {e} {' '.join(getattr(e, '__notes__', []))}"[:600] for e in each)
    return None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--short", action="store_true", help="25 examples each, no results file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of them, by its name")
    args = parser.parse_args()
    tally = Tally("fuzz", args.short, "property-based fuzz (hypothesis) of config, data rows, checkpoints and grader")
    counts: dict[str, int] = {}
    with Folders() as folders:
        fuzzed = Fuzz(trials.trained(folders))
        until, number = time.monotonic() + 60 * args.minutes, args.seed
        lost: set[str] = set()
        while number == args.seed or (time.monotonic() < until and not args.short):
            for name, work in fuzzed.targets().items():
                if name in lost or (args.only and name != args.only):
                    continue

                def count(name: str = name) -> None:
                    counts[name] = counts.get(name, 0) + 1

                fault = fuzz(work, number, 25 if args.short else 200, count)
                if fault is not None:
                    lost.add(name)  # one finding of each is enough to go on with
                    tally.tell(fault, f"{name}, seed {number}")
                    tally.tried -= 1
            number += 1
    tally.tried, tally.more = sum(counts.values()), {"examples": counts, "seeds": number - args.seed}
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
