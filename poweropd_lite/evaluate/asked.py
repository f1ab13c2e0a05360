"""Which problems an evaluation is of: those that are named or, of a run, those that it was scored on and what it kept out."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json
from poweropd_lite.base.teachers import SELF, files_of
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target
from poweropd_lite.models.loading import load_tokenizer
from poweropd_lite.problems.apart import Apart, asked_apart, is_apart
from poweropd_lite.problems.benchmarks import ALL, HELD_OUT, Benchmark, Problems, load_problems, of_held_out
from poweropd_lite.problems.files import SUFFIXES, digest_of
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped
from poweropd_lite.problems.stored import digest_of_ids
from poweropd_lite.run.folder import held_out_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKING = (
    "prompt_column", "answer_column", "prompt_suffix", "system_prompt", "enable_thinking", "template_kwargs",
    "max_prompt_tokens",
)  # fmt: skip
LOOKED_AT = 256  # training's own prompts, where a run kept none out and nobody names others


@dataclass(frozen=True)
class Asked:
    """What a model is asked."""

    sets: list[Problems]
    prompts: Sequence[Prompt]  # of the sets, and those that have no answer: what the KL to a teacher is estimated on
    about: str  # of these prompts
    longest: dict[str, int] = field(default_factory=dict)  # of an answer, where a run says it, by benchmark
    known: bool = True  # to be what a run held out: all others are, id for id, what it was trained on


def named(config: EvalConfig, target: Target, device: torch.device) -> str | None:
    """Returns the benchmarks to read; None for a run's own prompts alone."""
    run = target.run
    if config.benchmarks is not None:
        return config.benchmarks
    if run is not None and (run.evaluates or Path(run.data).suffix.lower() in SUFFIXES or Path(run.data).exists()):
        return run.eval_benchmarks
    return BUNDLED if target.is_bundled or device.type == "cpu" else ",".join(ALL)


def load_asked(
    config: EvalConfig,
    target: Target,
    benchmarks: list[Benchmark],
    tokenizer: "PreTrainedTokenizerBase",
    asking: Any,
    say: Callable[[str], None],
    by_row: bool = False,
) -> Asked:
    """Returns what is asked, having read it; `asking` is what make_prompt wants, `by_row` says that a user's function scores.

    Raises UserError for what can't be read.
    """
    apart = run_apart(target.run, tokenizer)
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
        sets.append(load_problems(benchmark, tokenizer, asking, limit, (columns[0], columns[1]), say, apart, by_row))
    of_sets = [prompt for problems in sets for prompt in problems.prompts]
    whole = of_sets if apart is None else [prompt for prompt in of_sets if prompt.teacher_ids] or of_sets
    if run is None:
        return Asked(sets, of_sets, "one completion a problem")
    if sets and not run.hold_out:
        return Asked(sets, whole[: run.kl_prompts or None], "one completion a problem", longest)
    if ignored := [name for name in _ASKING if name in config.model_fields_set and getattr(config, name) is not None]:
        typed = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise UserError(f"the run's own prompts are put as in training, so {typed} would be ignored; leave it out")
    prompts, skipped = load_prompts(run, tokenizer, say=say, teacher=apart, keep_rows=by_row)
    say_skipped(skipped, len(prompts), run.data, say)
    _say_if_changed(target, say)
    if not run.evaluates:
        looked_at = prompts[: config.problems or LOOKED_AT]
        return Asked([], looked_at, f"the first {len(looked_at)} prompts of {run.data}, which were trained on")
    rest, kept = hold_out(prompts, run.hold_out, run.data)
    known, kept = config.problems_of is None or _trained_on(target, rest), kept[: config.problems]
    if not known:
        say(
            f"these are not known to be the prompts that {config.problems_of} held out: its data, or this model's template, "
            "gives others; some may have been trained on"
        )
    if (scored := of_held_out(kept, run.data)).prompts:
        sets.append(scored)
        longest[HELD_OUT] = _longest(run)
    near = [*kept, *whole][: run.kl_prompts or None]
    of = f" of {run.data}" if not of_sets else ""
    return Asked(sets, near, f"{len(near)} prompts{of} that were not trained on", longest, known)


def run_apart(run: Config | None, tokenizer: "PreTrainedTokenizerBase") -> Apart | None:
    """Returns how the teacher of a run is asked, where that is otherwise than the student."""
    if run is None or not is_apart(run):
        return None
    own = (
        tokenizer if run.teacher == SELF else load_tokenizer(files_of(run, "teacher"), "teacher", run.trust_remote_code)
    )
    return asked_apart(run, tokenizer, own)


def _longest(run: Config) -> int:
    return run.eval_max_new_tokens or run.max_new_tokens


def _trained_on(target: Target, prompts: Sequence[Prompt]) -> bool:
    """Whether these prompts are, id for id, those that the run was trained on."""
    of = held_out_by(target.run_folder, target.run) if target.run_folder and target.run else None
    return of is not None and of["trained_on"] == digest_of_ids(prompts)


def _say_if_changed(target: Target, say: Callable[[str], None]) -> None:
    """Says it if the data file is not the one that the run was trained on: which prompts are held out hangs on all of them."""
    run, folder = target.run, target.run_folder
    if run is None or folder is None or not Path(run.data).exists() or not (folder / "inputs.json").is_file():
        return
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # then it is not known
        before = read_json(folder / "inputs.json")["fed"]["data"]["sha256"]
        if before != digest_of(Path(run.data)):
            say(f"{run.data} has changed since training, so that some of these prompts may have been trained on")
