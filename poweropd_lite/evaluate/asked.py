"""Which problems an evaluation is of: those that are named or, of a run, those that it was scored on and what it kept out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target
from poweropd_lite.problems.benchmarks import ALL, HELD_OUT, Benchmark, Problems, load_problems, of_held_out
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    if run is not None and (run.evaluates or Path(run.data).is_file()):
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
    if run is None or (sets and not run.hold_out):
        return Asked(sets, [p for s in sets for p in s.prompts], "one completion a problem", longest)
    prompts, skipped = load_prompts(run, tokenizer, say=say)
    say_skipped(skipped, len(prompts), run.data, say)
    if not run.evaluates:
        looked_at = prompts[: config.problems or LOOKED_AT]
        return Asked([], looked_at, f"the first {len(looked_at)} prompts of {run.data}, which were trained on")
    kept = hold_out(prompts, run.hold_out, run.data)[1][: config.problems]
    if any(prompt.answer is not None for prompt in kept):
        sets.append(of_held_out(kept, run.data))
        longest[HELD_OUT] = _longest(run)
    return Asked(sets, kept, f"{len(kept)} prompts of {run.data} that were not trained on", longest)


def _longest(run: Config) -> int:
    return run.eval_max_new_tokens or run.max_new_tokens
