"""One question to a run, an adapter or a model; to look at a student, not to score it (that is evaluate)."""

from pathlib import Path

from poweropd_lite.base.config import Config
from poweropd_lite.cli import Parser
from poweropd_lite.evaluate.chat import ChatConfig


def ask(
    model: str | Path,
    question: str,
    *,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    max_new_tokens: int | None = None,
    kernels: str | None = None,
) -> str:
    """Returns the greedy answer to a question, without special tokens; of at most `max_new_tokens`, else as the run.

    `model` is what the evaluate command takes: a run folder, an adapter, a model's folder or hub id, bundled-student or
    bundled-teacher. It is loaded anew each time; `base` is an adapter's base model, else the one it names;
    `trust_remote_code` whether Python code of the models may run, whatever the run was trained with; `kernels` is the
    setting of training. Raises UserError for a model or a question that can't be used.
    """
    from poweropd_lite.evaluate.answer import answers

    how = {"base": base, "trust_remote_code": trust_remote_code, "max_new_tokens": max_new_tokens, "kernels": kernels}
    return answers(model, question, before=False, **how)[-1]


def before_and_after(
    model: str | Path,
    question: str,
    *,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    max_new_tokens: int | None = None,
    kernels: str | None = None,
) -> tuple[str, str]:
    """Returns the answers of a student before its training and after, loaded once; otherwise as `ask`.

    `model` is a run or an adapter; raises UserError for a whole model, too, which has no before.
    """
    from poweropd_lite.evaluate.answer import answers

    how = {"base": base, "trust_remote_code": trust_remote_code, "max_new_tokens": max_new_tokens, "kernels": kernels}
    before, after = answers(model, question, before=True, **how)
    return before, after


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m poweropd_lite.ask", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="a run folder, an adapter, a model, bundled-student or bundled-teacher")
    parser.add_argument("question", help="what is asked, in the chat template and as in training")
    parser.add_argument("--before", action="store_true", help="print the answer of before the training as well")
    chat = {name: field.description for name, field in ChatConfig.model_fields.items()}
    parser.add_argument("--base", metavar="TEXT", help=chat["base"])
    parser.add_argument("--trust-remote-code", action="store_true", help=chat["trust_remote_code"])
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer; if not given, the run's own")
    kernels = Config.model_fields["kernels"]
    parser.add_argument("--kernels", metavar="{auto,off}", help=f"{kernels.description} (default: {kernels.default})")
    args = parser.parse(argv)
    how = {name: getattr(args, name) for name in ("base", "trust_remote_code", "max_new_tokens", "kernels")}
    if args.before:
        before, after = before_and_after(args.model, args.question, **how)
        print(f"before:\n{before}\n\nafter:\n{after}")
    else:
        print(ask(args.model, args.question, **how))
    return 0
