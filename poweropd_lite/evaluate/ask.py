"""One question to a run, an adapter or a model; to look at a student, not to score it (that is evaluate)."""

from pathlib import Path

from poweropd_lite.cli import Parser


def ask(model: str | Path, question: str, *, max_new_tokens: int | None = None) -> str:
    """Returns the greedy answer to a question, without special tokens; of at most `max_new_tokens`, else as the run.

    `model` is what the evaluate command takes: a run folder, an adapter, a model's folder or hub id, bundled-student or
    bundled-teacher. It is loaded anew each time. Raises UserError for a model or a question that can't be used.
    """
    from poweropd_lite.evaluate.answer import answer

    return answer(model, question, max_new_tokens)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m poweropd_lite.ask", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="a run folder, an adapter, a model, bundled-student or bundled-teacher")
    parser.add_argument("question", help="what is asked, in the chat template and as in training")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer; if not given, the run's own")
    args = parser.parse(argv)
    print(ask(args.model, args.question, max_new_tokens=args.max_new_tokens))
    return 0
