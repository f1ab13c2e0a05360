"""The grader against every gold answer of a folder of benchmarks: itself, its neighbours, and itself with one thing changed.

    python benchmarks/grade_check.py --folder benchmarks-on-disk

Prints every pair that is called the same although it should differ, to be looked at by hand: some changes change nothing
(the sign of 0, the bounds of an empty sum), and some neighbours are equal. Golds and worked solutions called wrong are
printed too. JSONL files, named after their benchmarks, with `answer` and perhaps `solution`.
"""

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

from poweropd_lite.grade.grader import Sample, grade
from poweropd_lite.problems.reading import ANSWER_COLUMNS, gold_answer

NEIGHBOURS = 2


def mutations(gold: str, rng: random.Random) -> dict[str, str]:
    """Returns other answers than `gold`, by what was changed in it."""
    found = {}
    if digits := list(re.finditer(r"\d", gold)):
        place = rng.choice(digits)
        digit = str((int(place[0]) + rng.randint(1, 8)) % 10)
        found["digit"] = gold[: place.start()] + digit + gold[place.end() :]
    if signs := list(re.finditer(r"(?<![\^_{])[+-](?=[\w\\])", gold)):
        place = rng.choice(signs)
        found["sign"] = gold[: place.start()] + ("-" if place[0] == "+" else "+") + gold[place.end() :]
    elif re.match(r"[\d\\a-z]", gold) and not gold.startswith(("\\text", "\\pm")) and "=" not in gold:
        found["sign"] = "-" + gold
    if bounds := list(re.finditer(r"(?<=[\^_])(?:\{([^{}]+)\}|(\w))", gold)):
        place = rng.choice(bounds)
        found["bound"] = gold[: place.start()] + "{" + (place[1] or place[2]) + "+1}" + gold[place.end() :]
    if re.fullmatch(r"(?:\\left)?[(\[][^()\[\]]*,[^()\[\]]*(?:\\right)?[)\]]", gold):
        swapped = {"(": "[", "[": "(", ")": "]", "]": ")"}
        found["bracket"] = gold[:-1] + swapped[gold[-1]]
    if len(entries := re.split(r"(?:,|\\\\)(?![!;:])", gold)) > 1 and (
        old := re.sub(r"(?:\\right|\\end)?[^\w]*$", "", entries[-1]).strip()
    ):
        found["entry"] = gold.replace(old, old + "+1", 1) if gold.count(old) == 1 else gold + "+1"
    return {what: text for what, text in found.items() if text != gold}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="JSONL files such as math500.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, started = random.Random(args.seed), time.monotonic()
    pairs: list[tuple[str, Sample, bool]] = []  # what it is, the sample, the right verdict
    if not (files := sorted(Path(args.folder).glob("*.jsonl"))):
        parser.error(f"{args.folder} holds no JSONL file")
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        columns = [next(c for c in ANSWER_COLUMNS if c in row) for row in rows]
        golds = [gold_answer(row[c], c) or "" for row, c in zip(rows, columns, strict=True)]
        for i, (row, gold) in enumerate(zip(rows, golds, strict=True)):
            name = file.stem
            pairs.append((f"{name} itself", Sample(f"\\boxed{{{gold}}}", gold, name), True))
            if isinstance(row.get("solution"), str) and "\\boxed" in row["solution"]:
                pairs.append((f"{name} solution", Sample(row["solution"], gold, name), True))
            elif name == "gsm8k" and "####" in row["answer"]:
                pairs.append((f"{name} solution", Sample(row["answer"], gold, name), True))
            for k in range(1, NEIGHBOURS + 1):
                other = golds[(i + k) % len(golds)]
                pairs.append((f"{name} neighbour", Sample(f"\\boxed{{{other}}}", gold, name), other == gold))
            for what, text in mutations(gold, rng).items():
                pairs.append((f"{name} {what}", Sample(f"\\boxed{{{text}}}", gold, name), False))
    verdicts = grade([sample for _, sample, _ in pairs])
    counts: dict[str, list[int]] = {}
    for (what, sample, right), verdict in zip(pairs, verdicts, strict=True):
        count = counts.setdefault(what, [0, 0])
        count[0] += 1
        if verdict.correct != right:
            count[1] += 1
            print(
                f"{what}: {sample.gold!r} {'differs from' if right else 'is'} {verdict.answer!r}"
                + " (undecided)" * verdict.undecided
            )
    print(f"{len(pairs):,} pairs in {time.monotonic() - started:.0f} s; verdicts that are not as expected:")
    for what, (total, odd) in counts.items():
        print(f"  {what:24} {odd:4} of {total:,}")


if __name__ == "__main__":
    sys.exit(main())
