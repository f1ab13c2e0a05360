"""Says what each reward and alpha would do, before any training: `python -m poweropd_lite.advise` (docs/advise.md).

Takes all of training's settings too. Exit code 0: the config's own reward pays enough tokens; 1: it does not; 2: bad
input; 130 or 143: stopped by a signal.
"""

from poweropd_lite.advise import advise
from poweropd_lite.cli import run_command
from poweropd_lite.rehearse.command import run_for_report
from poweropd_lite.rehearse.settings import AdviseConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_for_report("advise", __doc__.splitlines()[0], AdviseConfig, advise, argv)


if __name__ == "__main__":
    run_command(main)
