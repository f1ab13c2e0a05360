"""Says whether the teacher may be 4-bit at this alpha: `python -m poweropd_lite.audit --alpha 10`.

Rollouts of the student are scored by the full-precision teacher and by its 4-, 8- and 16-bit forms, and the rewards compared:
what share of the reward mass changes its sign, and how well the two correlate. Exit code 0: sound; 1: not; 2: bad input.
Takes all of training's settings too. From Python: `audit(load_config("bundled", alpha=50))`.
"""

from poweropd_lite.base.config import Config
from poweropd_lite.base.flags import config_parser
from poweropd_lite.cli import run_command
from poweropd_lite.rehearse.audit import audit
from poweropd_lite.rehearse.command import run_for_report
from poweropd_lite.rehearse.settings import AuditConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 sound, 1 not, 2 bad input, 130 or 143 stopped by a signal."""
    parser = config_parser("python -m poweropd_lite.audit", __doc__.splitlines()[0], AuditConfig, Config)
    return run_for_report(parser, argv, AuditConfig, audit)


if __name__ == "__main__":
    run_command(main)
