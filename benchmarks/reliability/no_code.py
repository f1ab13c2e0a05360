"""No code of others runs, every way that was thought of: `python benchmarks/reliability/no_code.py`, about a minute.

Pickles, YAML tags, chat templates, auto_map, module names in adapters, scripts and archives in the place of problems, and
code as an answer: each would make a file named it-ran (tests/reliability/table_code.py).
"""

import sys

import trials

sys.path.insert(0, str(trials.ROOT / "tests" / "reliability"))

import forked
import table_code
from refusing import fault


def main() -> int:
    asked = trials.parser(__doc__.splitlines()[0], tries=1000, short=10).parse_args()
    tally = trials.Tally("no_code", bool(asked.short), "files that run code of their own where they are trusted")
    with trials.Folders() as folders:
        run = trials.trained(folders) / "run"
        cases = table_code.cases()[: asked.tries]
        for i, case in enumerate(cases[:: len(cases) // asked.short] if asked.short else cases):
            tally.tell(fault(case, forked.server(), folders.root / f"case-{i}", run), case.name)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
