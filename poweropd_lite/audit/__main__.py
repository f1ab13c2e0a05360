"""Says whether the teacher may be 4-bit at this alpha: `python -m poweropd_lite.audit --alpha 10` (docs/audit.md).

Takes all of training's settings too. Exit code 0: sound; 1: not; 2: bad input; 130 or 143: stopped by a signal.
"""

from poweropd_lite.audit import audit
from poweropd_lite.cli import run_command
from poweropd_lite.rehearse.command import run_for_report
from poweropd_lite.rehearse.settings import AuditConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_for_report("audit", __doc__.splitlines()[0], AuditConfig, audit, argv)


if __name__ == "__main__":
    run_command(main)
