"""Says what each reward and alpha would do, before any training: `python -m poweropd_lite.advise`.

One set of the student's rollouts is scored once and replayed through every reward: how many tokens are paid at all, how the
gradient is spread over them, what truncated sampling would bring, and where the gradient points beside that of full_kl.
Nothing is trained. Exit code 0: the config's own reward pays enough tokens; 1: it does not; 2: bad input.
Takes all of training's settings too. From Python: `advise(load_config("bundled", alpha=50))`.
"""

from poweropd_lite.base.config import Config
from poweropd_lite.base.flags import config_parser
from poweropd_lite.cli import run_command
from poweropd_lite.rehearse.advise import advise
from poweropd_lite.rehearse.command import run_for_report
from poweropd_lite.rehearse.settings import AdviseConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 sound, 1 too few tokens are paid, 2 bad input, 130 or 143 stopped by a signal."""
    parser = config_parser("python -m poweropd_lite.advise", __doc__.splitlines()[0], AdviseConfig, Config)
    return run_for_report(parser, argv, AdviseConfig, advise)


if __name__ == "__main__":
    run_command(main)
