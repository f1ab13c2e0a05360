"""Bad inputs, all of the table in tests/reliability: `python benchmarks/reliability/bad_inputs.py`.

Each is run by the real command in a process of its own, with ten seconds of processor time and 3 GiB beyond what is loaded.
It must end with one message, exit code 2 (or the one that is documented), no traceback, less than 100 kB of output, and
nothing left behind. About six minutes on two cores.
"""

import sys

import trials

sys.path.insert(0, str(trials.ROOT / "tests" / "reliability"))

import forked
from refusing import fault
from table import all_cases


def main() -> int:
    parser = trials.parser(__doc__.splitlines()[0], tries=10_000, short=40)
    parser.add_argument("--only", default="", help="the cases whose names hold this")
    asked = parser.parse_args()
    cases = [case for case in all_cases() if asked.only in case.name]
    if asked.short:
        cases = cases[:: max(1, len(cases) // asked.short)]
    tally = trials.Tally(
        "bad_inputs", bool(asked.short or asked.only), "bad input: one message, its exit code, nothing left"
    )
    with trials.Folders() as folders:
        run = trials.trained(folders) / "run"
        for i, case in enumerate(cases[: asked.tries]):
            tally.tell(fault(case, forked.server(), folders.root / f"case-{i}", run), case.name)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
