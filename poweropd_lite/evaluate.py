"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate --model runs/power10-seed0`.

Samples n answers a problem, grades them, and prints Avg@n and Pass@n with intervals, beside the paper's own numbers where
the paper has such a run. Every sample is kept; started again, it goes on where it stopped. `--compare A B` pairs two
evaluations, `--regrade DIR` grades without sampling again. From Python: `evaluate(load_eval_config(model=...))`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.command_config import EvalConfig, load_eval_config
from poweropd_lite.errors import UserError, run_command
from poweropd_lite.flags import config_parser, given
from poweropd_lite.interrupt import StopRequest

if TYPE_CHECKING:
    from poweropd_lite.eval_folder import EvalFolder
    from poweropd_lite.eval_plan import Plan

_one_at_a_time = threading.Lock()  # transformers does not load two models at once
STOPPING = "stopping after this batch; started again, it goes on (once more to stop at once)"


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` returns: where its files are, and results.json (None if a signal stopped it)."""

    folder: Path
    results: dict[str, Any] | None
    signal: int = 0


def evaluate(config: EvalConfig, say: Callable[[str], None] = print) -> Evaluated:
    """Evaluates a model, or goes on with it; raises UserError for what the user can mend."""
    from poweropd_lite.eval_folder import EvalFolder
    from poweropd_lite.eval_plan import make_plan

    with _one_at_a_time, own_threads():
        plan = make_plan(config, say)
        with StopRequest(STOPPING) as stop, EvalFolder(plan.path) as folder:
            folder.settle(plan.settings, plan.about)
            sample_missing(plan, folder, stop, say)
            names = [part.name for part in plan.parts]
            results = None
            if not stop:
                results = grade_and_score(folder, config.ks, names, False, config.official_grading, say, stop)
        return Evaluated(plan.path, results, 0 if results else stop.signal)


@contextmanager
def own_threads() -> Iterator[None]:
    """Gives torch's number of threads back at the end of the block."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_missing(plan: "Plan", folder: "EvalFolder", stop: StopRequest, say: Callable[[str], None]) -> None:
    """Samples the batches that are not in the folder yet, until all are or a stop is asked for."""
    missing = []
    for part in plan.parts:
        here = folder.samples(part.name, part.batches)
        missing += [(part, batch) for batch in part.batches if batch[0] not in here]
    if not missing:
        say(f"every sample is in {plan.path} already")
        return
    import torch

    from poweropd_lite.backends import serve_engine
    from poweropd_lite.evaluation import as_answer, sample_answers
    from poweropd_lite.logprobs import Sampling
    from poweropd_lite.metrics import Counting

    config, tokenizer = plan.config, plan.vocabulary.tokenizer
    say(
        f"{plan.target.kind} {plan.target.name}, {plan.engine.name} ({plan.engine.why}), {plan.settings['dtype']}, into {plan.path}"
    )
    forbidden = torch.tensor(plan.vocabulary.forbidden, dtype=torch.long, device=plan.device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, forbidden)
    left = sum(len(batch) for _, batch in missing)
    stops = plan.vocabulary.stop_ids
    with closing(serve_engine(plan.target, plan.engine_config, plan.device, plan.dtype, stops, say)) as engine:
        engine.sync()
        with Counting("answer", plan.total, plan.total - left) as counting:
            for part, batch in missing:
                if stop:
                    return
                prompts = part.problems.prompts
                rollouts = sample_answers(engine, prompts, batch, sampling, part.longest, plan.settings["seed"])
                records = []
                for (i, k), rollout in zip(batch, rollouts, strict=True):
                    p, prompt = prompts[i], tokenizer.decode(list(prompts[i].ids))
                    asked = {"question": p.question, "prompt": prompt, "gold": p.answer, "tolerance": p.tolerance}
                    records.append({"problem": i, "sample": k, **asked, **asdict(as_answer(rollout, tokenizer))})
                folder.append(part.name, records)
                counting.show(part.name, counting.done + len(batch), plan.total)


class _Stopped(Exception):
    """A signal came while answers were graded."""


def grade_and_score(
    folder: "EvalFolder",
    ks: list[int],
    names: list[str] | None,
    again: bool,
    official: bool,
    say: Callable[[str], None],
    stop: StopRequest,
) -> dict[str, Any] | None:
    """Grades what is not graded yet (all of it if `again`), writes the results and says them; returns them, None if stopped.

    The table is of the benchmarks `names`, or of all that are finished.
    """
    from poweropd_lite.eval_results import complete_benchmarks, grade_folder, write_results
    from poweropd_lite.eval_tables import markdown, screen_table
    from poweropd_lite.metrics import Counting

    complete = complete_benchmarks(folder.path)
    with Counting("answer") as counting:

        def tick(name: str, done: int, total: int) -> None:
            if stop:
                raise _Stopped
            counting.show(f"grading {name}", done, total)

        try:
            grade_folder(folder, names or complete, again, official, tick)
        except _Stopped:
            return None
    results = write_results(folder.path, ks, names or complete, markdown)
    say(screen_table(results))
    if others := [name for name in complete if name not in results["benchmarks"]]:
        say(f"also there, but not asked for now: {', '.join(others)}")
    files = "  ".join(f"{name}.jsonl" for name in results["benchmarks"])
    say(f"files   {folder.path}: results.json  results.md  {files}")
    return results


def regrade(
    folder: str | Path, official: bool = False, k: str | None = None, say: Callable[[str], None] = print
) -> Evaluated:
    """Grades the samples of an evaluation again and writes its results anew."""
    from poweropd_lite.eval_folder import EvalFolder, read_settings
    from poweropd_lite.eval_results import earlier_ks, evaluation_in

    path = evaluation_in(folder)
    ks = earlier_ks(path) if k is None else []
    ks = ks or load_eval_config(model=str(path), n=read_settings(path)["settings"]["n"], k=k).ks
    with StopRequest("stopping; what is graded so far is kept") as stop, EvalFolder(path) as opened:
        results = grade_and_score(opened, ks, None, True, official, say, stop)
    return Evaluated(path, results, 0 if results else stop.signal)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 130 or 143 stopped by a signal."""
    parser = config_parser("python -m poweropd_lite.evaluate", __doc__.splitlines()[0], EvalConfig)
    more = parser.add_argument_group("without sampling")
    more.add_argument("--compare", nargs=2, metavar=("A", "B"), help="pair two evaluations (or evaluated runs): A - B")
    more.add_argument("--regrade", metavar="DIR", help="grade the samples of an evaluation again")
    args = parser.parse(argv)
    flags = given(args, EvalConfig)
    if args.compare and args.regrade:
        raise UserError("--compare and --regrade are two different things to do; leave one out")
    if args.compare or args.regrade:
        name, takes = ("--compare", set()) if args.compare else ("--regrade", {"official_grading", "k"})
        if others := sorted(set(flags) - takes):
            others = ", ".join("--" + other.replace("_", "-") for other in others)
            raise UserError(f"{name} samples nothing, so {others} means nothing there; leave it out")
    if args.compare:
        from poweropd_lite.eval_results import compare
        from poweropd_lite.eval_tables import comparison_table

        print(comparison_table(compare(*args.compare)))
        return 0
    if args.regrade:
        done = regrade(args.regrade, bool(flags.get("official_grading")), flags.get("k"))
    else:
        done = evaluate(load_eval_config(**flags))
    return 0 if done.results is not None else 128 + done.signal


if __name__ == "__main__":
    run_command(main)
