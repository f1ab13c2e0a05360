"""Which problems an evaluation is of: those that are named or, of a run, those that it was scored on and what it kept out."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import digest
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target
from poweropd_lite.problems.benchmarks import ALL, HELD_OUT, SUFFIXES, Benchmark, Problems, load_problems, of_held_out
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKING = (
    "prompt_column", "answer_column", "prompt_suffix", "system_prompt", "enable_thinking", "max_prompt_tokens",
)  # fmt: skip
LOOKED_AT = 256  # training's own prompts, where a run kept none out and nobody names others


@dataclass(frozen=True)
class Asked:
    """What a model is asked."""

    sets: list[Problems]
    prompts: list[Prompt]  # of the sets, and those that have no answer: what the KL to a teacher is estimated on
    about: str  # of these prompts
    longest: dict[str, int] = field(default_factory=dict)  # of an answer, where a run says it, by benchmark


def named(config: EvalConfig, target: Target, device: torch.device) -> str | None:
    """Returns the benchmarks to read; None for a run's own prompts alone."""
    run = target.run
    if config.benchmarks is not None:
        return config.benchmarks
    if run is not None and (run.evaluates or Path(run.data).suffix in SUFFIXES or Path(run.data).is_file()):
        return run.eval_benchmarks
    return BUNDLED if target.is_bundled or device.type == "cpu" else ",".join(ALL)


def load_asked(
    config: EvalConfig,
    target: Target,
    benchmarks: list[Benchmark],
    tokenizer: "PreTrainedTokenizerBase",
    asking: Any,
    say: Callable[[str], None],
) -> Asked:
    """Returns what is asked, having read it; `asking` is what make_prompt wants. Raises UserError for what can't be read."""
    run = target.run if config.benchmarks is None else None
    columns = [config.prompt_column, config.answer_column]
    if run is not None:
        own = (run.eval_prompt_column, run.eval_answer_column)
        columns = [given or theirs for given, theirs in zip(columns, own, strict=True)]
    sets, longest = [], {}
    for benchmark in benchmarks:
        limit = config.problems
        if run is not None and not benchmark.sizes:  # its size is the run's own matter
            limit, longest[benchmark.name] = limit or run.eval_problems, _longest(run)
        sets.append(load_problems(benchmark, tokenizer, asking, limit, (columns[0], columns[1]), say))
    of_sets = [prompt for problems in sets for prompt in problems.prompts]
    if run is None:
        return Asked(sets, of_sets, "one completion a problem")
    if sets and not run.hold_out:
        return Asked(sets, of_sets[: run.kl_prompts or None], "one completion a problem", longest)
    if ignored := [name for name in _ASKING if name in config.model_fields_set and getattr(config, name) is not None]:
        typed = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise UserError(f"the run's own prompts are put as in training, so {typed} would be ignored; leave it out")
    prompts, skipped = load_prompts(run, tokenizer, say=say)
    say_skipped(skipped, len(prompts), run.data, say)
    _say_if_changed(target, say)
    if not run.evaluates:
        looked_at = prompts[: config.problems or LOOKED_AT]
        return Asked([], looked_at, f"the first {len(looked_at)} prompts of {run.data}, which were trained on")
    kept = hold_out(prompts, run.hold_out, run.data)[1][: config.problems]
    if any(prompt.answer is not None for prompt in kept):
        sets.append(of_held_out(kept, run.data))
        longest[HELD_OUT] = _longest(run)
    near = [*kept, *of_sets][: run.kl_prompts or None]
    of = f" of {run.data}" if not of_sets else ""
    return Asked(sets, near, f"{len(near)} prompts{of} that were not trained on", longest)


def _longest(run: Config) -> int:
    return run.eval_max_new_tokens or run.max_new_tokens


def _say_if_changed(target: Target, say: Callable[[str], None]) -> None:
    """Says it if the data file is not the one that the run was trained on: which prompts are held out hangs on all of them."""
    run, folder = target.run, target.run_folder
    if run is None or folder is None or not Path(run.data).is_file() or not (folder / "inputs.json").is_file():
        return
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # then it is not known
        before = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["fed"]["data"]["sha256"]
        if before != digest(Path(run.data)):
            say(f"{run.data} has changed since training, so that some of these prompts may have been trained on")
