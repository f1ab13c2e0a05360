"""All that is tried against reliability, one after the other: `python benchmarks/reliability/run.py [NAME ...] [--short]`.

Without names all of them, always in the order of NAMES. --short takes a few tries of each, and writes no results. --table prints
what results/ hold. Ends with 1 if one was lost.
"""

import argparse
import importlib
import json
import sys

import trials

NAMES = (
    "hostile",
    "kills",
    "flips",
    "disk",
    "card",
    "poison",
    "steps",
    "fuzz",
    "bad_inputs",
    "no_code",
)  # hostile measures the process


def cells() -> dict[str, str]:
    """Returns of each test what docs/reliability.md says of it: tried, survived, lost."""
    found = {}
    for name in NAMES:
        file = trials.HERE / "results" / f"{name}.json"
        found[name] = "not run yet | | "
        if file.exists():
            r = json.loads(file.read_text(encoding="utf-8"))
            found[name] = f"{r['tried']:,} | {r['survived']:,} | {len(r['lost'])}"
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no test named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if args.table:
        print("\n".join(f"| `{name}.py` | {said} |" for name, said in cells().items()))
        return 0
    codes = []
    for name in [each for each in NAMES if each in (args.names or NAMES)]:
        sys.argv = [f"{name}.py", *["--short"] * args.short]
        codes.append(importlib.import_module(name).main())
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
