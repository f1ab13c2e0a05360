"""The command line of export: `python -m poweropd_lite.export RUN --to FORMAT`."""

import signal

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import stopped_at_once
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.export.settings import ExportConfig, load_export_config


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input or a wrong export, 128 + n stopped by a signal; nothing half-written."""
    parser = config_parser(
        "python -m poweropd_lite.export",
        "Turns a run or a PEFT adapter into what other programs load, and proves it first.\n\n"
        "  python -m poweropd_lite.export runs/power10-seed0 --to gguf            llama.cpp, Ollama\n"
        "  python -m poweropd_lite.export runs/power10-seed0 --to merged-16bit    transformers, vLLM\n"
        "  python -m poweropd_lite.export runs/power10-seed0 --to adapter         PEFT, vLLM; a few MB",
        ExportConfig,
    )
    parser.add_argument("source", nargs="?", metavar="RUN", help="what to export; the same as --model")
    args = parser.parse(argv)
    flags = given(args, ExportConfig)
    if args.source is not None:
        if "model" in flags:
            raise UserError(f"found both {args.source} and --model {flags['model']}; type one of them")
        flags["model"] = args.source
    config = load_export_config(**flags)
    from poweropd_lite.export.make import export

    # SIGINT too: a shell has it ignored in what a script starts in the background.
    with stopped_at_once("stopped: nothing is written", signal.SIGHUP):
        export(config, say=lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    run_command(main)
