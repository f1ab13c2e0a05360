"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate --model runs/power10-seed0`.

Samples n answers a problem, grades them, and prints Avg@n and Pass@n with intervals, beside the paper's own numbers where
the paper has such a run. Every sample is kept; started again, it goes on where it stopped. `--compare A B` pairs two
evaluations, `--regrade DIR` grades without sampling again. From Python: `evaluate(load_eval_config(model=...))`.
"""

from poweropd_lite.base.errors import UserError
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.evaluate.settings import EvalConfig, load_eval_config


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 130 or 143 stopped by a signal."""
    parser = config_parser("python -m poweropd_lite.evaluate", __doc__.splitlines()[0], EvalConfig)
    more = parser.add_argument_group("without sampling").add_mutually_exclusive_group()
    more.add_argument("--compare", nargs=2, metavar=("A", "B"), help="pair two evaluations (or evaluated runs): A - B")
    more.add_argument("--regrade", metavar="DIR", help="grade the samples of an evaluation again")
    args = parser.parse(argv)
    flags = given(args, EvalConfig)
    if args.compare or args.regrade:
        name, takes = ("--compare", set()) if args.compare else ("--regrade", {"official_grading", "k", "grader"})
        if others := sorted(set(flags) - takes):
            typed = ", ".join("--" + other.replace("_", "-") for other in others)
            raise UserError(f"{name} samples nothing, so {typed} means nothing there; leave it out")
    if args.compare:
        from poweropd_lite.evaluate.results import compare
        from poweropd_lite.evaluate.tables import comparison_table

        print(comparison_table(compare(*args.compare)))
        return 0
    config = None if args.regrade else load_eval_config(**flags)
    from poweropd_lite.evaluate.evaluation import evaluate, regrade

    if config is None:
        done = regrade(args.regrade, bool(flags.get("official_grading")), flags.get("k"), flags.get("grader"))
    else:
        done = evaluate(config)
    return 0 if done.results is not None else 128 + done.signal


if __name__ == "__main__":
    run_command(main)
