"""Writes training and test problems as verl reads them: train.parquet and test.parquet, in this folder.

python examples/verl/prompts.py                      # DeepScaleR, and MATH-500 to be scored on
python examples/verl/prompts.py --train my.jsonl --test my-test.jsonl
"""

import argparse

from datasets import Dataset

from poweropd_lite.base.config import Config
from poweropd_lite.problems.rows import Source, rows


def write(data: str, split: str, file: str) -> int:
    """Writes the rows of a hub id or a file that have a `problem` and an `answer`, a message each; returns how many."""
    kept, left_out = [], 0
    for place, row in rows(Source(data, split=split)):
        if isinstance(row, str) or not row.get("problem") or row.get("answer") is None:
            left_out += 1
            continue
        kept.append(
            {
                "data_source": data,
                "prompt": [{"role": "user", "content": str(row["problem"])}],
                "reward_model": {"style": "rule", "ground_truth": str(row["answer"])},
                "extra_info": {"index": len(kept), "place": place},
            }
        )
    if not kept:
        raise SystemExit(f"no row of {data} has a problem and an answer, which verl's rows are made of")
    Dataset.from_list(kept).to_parquet(file)
    print(f"{file}: {len(kept)} problems of {data}; left out {left_out} without a problem or an answer")
    return len(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default=Config().data, help="hub id, or a JSON, JSONL or Parquet file")
    parser.add_argument("--test", default="HuggingFaceH4/MATH-500", help="likewise; of the hub, the split test")
    args = parser.parse_args()
    write(args.train, "train", "train.parquet")
    write(args.test, "test", "test.parquet")
