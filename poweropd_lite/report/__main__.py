"""Makes one page, with pictures, of what runs did: `python -m poweropd_lite.report runs/power10-seed0 runs/tanh-seed0`.

Rewards, accuracy, length, gradients, time and memory by step, completions with their tokens coloured by reward, several
settings side by side, each over its seeds. It reads run folders, also of runs that still go on. From Python:
`report(["runs/a", "runs/b"])`.
"""

from poweropd_lite.base.config_files import checked
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.report.settings import ReportConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = config_parser("python -m poweropd_lite.report", __doc__.splitlines()[0], ReportConfig)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, as train wrote them")
    args = parser.parse(argv)
    asked = checked(ReportConfig, given(args, ReportConfig))
    from poweropd_lite.report.write import report

    report(args.runs, asked.output, asked.teacher, asked.baseline, asked.labels, asked.style, base=asked.base)
    return 0


if __name__ == "__main__":
    run_command(main)
