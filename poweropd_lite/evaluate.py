"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate --model runs/power10-seed0`.

Samples n answers a problem, grades them, and prints Avg@n and Pass@n with intervals, beside the paper's own numbers where
the paper has such a run. Every sample is kept; started again, it goes on where it stopped. `--compare A B` pairs two
evaluations, `--regrade DIR` grades without sampling again. From Python: `evaluate(load_eval_config(model=...))`.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.config import EvalConfig, load_eval_config
from poweropd_lite.errors import UserError, run_command
from poweropd_lite.flags import config_parser, given
from poweropd_lite.interrupt import StopRequest

if TYPE_CHECKING:
    from poweropd_lite.eval_folder import EvalFolder
    from poweropd_lite.eval_plan import Plan

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

    plan = make_plan(config, say)
    with StopRequest(STOPPING) as stop, EvalFolder(plan.path) as folder:
        folder.settle(plan.settings, plan.about)
        sample_missing(plan, folder, stop, say)
        if stop:
            return Evaluated(plan.path, None, stop.signal)
        results = grade_and_score(folder, config.ks, again=False, official=config.official_grading, say=say)
    return Evaluated(plan.path, results)


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
                rollouts = sample_answers(engine, prompts, batch, sampling, part.longest, config.seed)
                records = []
                for (i, k), rollout in zip(batch, rollouts, strict=True):
                    p, prompt = prompts[i], tokenizer.decode(list(prompts[i].ids))
                    asked = {"question": p.question, "prompt": prompt, "gold": p.answer, "tolerance": p.tolerance}
                    records.append({"problem": i, "sample": k, **asked, **asdict(as_answer(rollout, tokenizer))})
                folder.append(part.name, records)
                counting.show(part.name, counting.done + len(batch), plan.total)


def grade_and_score(
    folder: "EvalFolder", ks: list[int], again: bool, official: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Grades what is not graded yet (all of it if `again`), writes the results and says them; returns them."""
    from poweropd_lite.eval_results import grade_folder, write_results
    from poweropd_lite.eval_tables import markdown, screen_table
    from poweropd_lite.metrics import Counting

    with Counting("answer") as counting:
        grade_folder(folder, again, official, lambda name, *done: counting.show(f"grading {name}", *done))
    results = write_results(folder.path, ks, markdown)
    say(screen_table(results))
    files = "  ".join(f"{name}.jsonl" for name in results["benchmarks"])
    say(f"files   {folder.path}: results.json  results.md  {files}")
    return results


def regrade(folder: str, official: bool = False, k: str | None = None, say: Callable[[str], None] = print) -> dict:
    """Grades the samples of an evaluation again and writes its results anew; returns them."""
    from poweropd_lite.eval_folder import EvalFolder, read_settings
    from poweropd_lite.eval_results import evaluation_in

    path = evaluation_in(folder)
    ks = load_eval_config(model=str(path), n=read_settings(path)["settings"]["n"], k=k).ks
    with EvalFolder(path) as opened:
        return grade_and_score(opened, ks, again=True, official=official, say=say)


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
        regrade(args.regrade, bool(flags.get("official_grading")), flags.get("k"))
        return 0
    done = evaluate(load_eval_config(**flags))
    return 0 if done.results is not None else 128 + done.signal


if __name__ == "__main__":
    run_command(main)
