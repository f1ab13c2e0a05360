"""Makes the paper's tables on one card: `python -m poweropd_lite.reproduce --preset smoke`."""

from poweropd_lite.base.config import Config
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.reproduce import reproduce
from poweropd_lite.reproduce.settings import ReproduceConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all done, 1 some failed, 2 bad input, 130 or 143 by a signal."""
    parser = config_parser("python -m poweropd_lite.reproduce", __doc__.splitlines()[0], ReproduceConfig, Config)
    args = parser.parse(argv)
    flags = {**given(args, ReproduceConfig), **given(args, Config, ReproduceConfig)} | (
        {"config": args.config} if args.config else {}
    )
    done = reproduce(say=lambda text: print(text, flush=True), **flags)
    return 128 + done.signal if done.signal else int("failed" in done.states.values())


if __name__ == "__main__":
    run_command(main)
