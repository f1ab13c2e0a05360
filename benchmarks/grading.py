"""Grading speed on worked solutions, ours and math-verify as it comes: `python benchmarks/grading.py --data math500.jsonl`.

Every row's worked solution is graded against its own answer, and against the answer of the next row, which takes
algebra more often. math-verify is called as its README shows (parse, then verify) on the same texts, in this process, with
its own limit of five seconds. Prints answers a second and the ratios; verdicts that differ are counted.
"""

import argparse
import logging
import os
import time

from poweropd_lite.base.errors import UserError
from poweropd_lite.grade import Sample, grade
from poweropd_lite.grade.answers import boxed_answer
from poweropd_lite.problems.rows import Source, rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="HuggingFaceH4/MATH-500", help="a file or hub id with answer and solution")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        table = [
            row for _, row in rows(Source(args.data, split="test")) if isinstance(row, dict) and row.get("solution")
        ]
    except UserError as error:
        parser.error(str(error))
    golds = [str(row["answer"]) for row in table]
    texts = [row["solution"] for row in table]
    grade([Sample("\\boxed{x+1}", "1+x")])  # starts the processes
    cores = len(os.sched_getaffinity(0))
    print(
        f"{len(table)} solutions, {cores} cores; answers a second\n\n| | ours | math-verify | ratio | ours right | theirs |"
    )
    print("|---|---|---|---|---|---|")
    for name, shift in (("own answer", 0), ("the next row's answer", 1)):
        wanted = golds[shift:] + golds[:shift]
        started = time.perf_counter()
        ours = [v.correct for v in grade([Sample(t, g) for t, g in zip(texts, wanted, strict=True)])]
        our_rate = len(table) / (time.perf_counter() - started)
        started = time.perf_counter()
        theirs = [plain(text, gold) for text, gold in zip(texts, wanted, strict=True)]
        their_rate = len(table) / (time.perf_counter() - started)
        print(
            f"| {name} | {our_rate:,.0f} | {their_rate:,.0f} | {our_rate / their_rate:.1f} | {sum(ours)} | {sum(theirs)} |"
        )
    boxed = [boxed_answer(text) for text in texts]
    print(f"\n{sum(b == g for b, g in zip(boxed, golds, strict=True))} of the solutions box the answer to the letter")


def plain(text: str, gold: str) -> bool:
    """math-verify as it comes."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(text)))


if __name__ == "__main__":
    main()
