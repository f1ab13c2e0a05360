"""A grader of one's own: what a short text keeps of what it should say (docs/your_task.md, "Beyond maths").

    cd examples && python -m poweropd_lite.evaluate --model RUN --benchmarks my.jsonl --grader grade_summary:score

A row of `my.jsonl`: {"question": "Sum up in a sentence: ...", "keep": ["Paris", "1889"], "words": 25}.
"""

import re
from typing import Any


def score(completion: str, row: dict[str, Any]) -> float:
    """Returns the share of row["keep"] that is said, 0 to 1, times row["words"] / words where the text has more words."""
    said, words = completion.casefold(), len(completion.split())
    kept = sum(bool(re.search(rf"(?<!\w){re.escape(fact.casefold())}(?!\w)", said)) for fact in row["keep"])
    return kept / len(row["keep"]) * min(1.0, row["words"] / max(1, words))
