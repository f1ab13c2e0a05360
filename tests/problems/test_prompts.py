"""Problems from every kind of file, what is skipped and named, and the order of training."""

import json

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.benchmarks import Benchmark, load_problems
from poweropd_lite.problems.prompts import step_indices
from poweropd_lite.problems.reading import load_prompts
from poweropd_lite.problems.rows import Source


def load(pair, limit=None, **settings):
    return load_prompts(load_config("bundled", **settings), pair.tokenizer, limit)


ROWS = [{"problem": "Compute 1 + 2.", "answer": "3"}, {"problem": "Compute 4 * 5.", "answer": 20}]
TEXT = "<|im_start|>user\nCompute 1 + 2.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, pair, kind):
    path = tmp_path / f"problems.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**r, "answer": str(r["answer"])} for r in ROWS]), path)
    prompts, skipped = load(pair, data=str(path))
    assert skipped == []
    assert [p.answer for p in prompts] == ["3", "20"]
    assert pair.tokenizer.decode(list(prompts[0].ids)) == TEXT


def test_columns_messages_suffix_system_and_thinking(tmp_path, pair):
    path = tmp_path / "chat.jsonl"
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Compute 1 + 2."},
    ]
    path.write_text(json.dumps({"talk": messages}) + "\n")
    settings = {
        "prompt_column": "talk",
        "prompt_suffix": " Box it.",
        "system_prompt": "Be brief.",
        "enable_thinking": True,
    }
    (prompt,), _ = load(pair, data=str(path), **settings)
    assert pair.tokenizer.decode(list(prompt.ids)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nCompute 1 + 2. Box it.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.answer is None


def test_rows_that_cannot_be_used_are_named(tmp_path, pair):
    path = tmp_path / "mixed.jsonl"
    lines = [
        json.dumps(ROWS[0]),
        "{not json",
        json.dumps({"q": "x"}),
        json.dumps({"problem": "  ", "answer": "1"}),
        json.dumps({"problem": 7, "answer": "1"}),
        json.dumps([1, 2]),
        json.dumps({"problem": "word " * 200, "answer": "1"}),
    ]
    path.write_text("\n".join(lines))
    prompts, skipped = load(pair, data=str(path))
    assert len(prompts) == 1
    reasons = [
        "not JSON",
        "no column problem or question or prompt or messages or conversations; it has q",
        "is empty",
        "neither a text",
        "not an object",
        "more than max_prompt_tokens 128",
    ]
    assert len(skipped) == len(reasons)
    for number, (row, reason) in enumerate(zip(skipped, reasons, strict=True), 2):
        assert str(row).startswith(f"{path}, line {number}: ") and reason in row.reason
    assert [row.too_long for row in skipped] == [False] * 5 + [True]


def test_a_byte_order_mark_and_odd_line_separators_lose_no_row(tmp_path, pair):
    path = tmp_path / "windows.jsonl"
    rows = [{"problem": "Compute 1 + 2.\u2028Now."}, {"problem": "Compute 3 + 4."}]
    path.write_text(
        "\ufeff" + "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8", newline=""
    )
    prompts, skipped = load(pair, data=str(path))
    assert ([p.question for p in prompts], skipped) == ([r["problem"] for r in rows], [])


def test_no_usable_row_is_an_error_that_names_the_flag(tmp_path, pair):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="no usable problem.*\n.*no rows\n.*--data"):
        load(pair, data=str(path))


def test_the_bundled_splits_share_no_question(pair):
    training, _ = load(pair)
    bundled = Benchmark("bundled", Source("bundled", held_out=True, flag="--benchmarks"))
    held_out = load_problems(bundled, pair.tokenizer, load_config("bundled"), None, (None, None), print).prompts
    assert (len(training), len(held_out)) == (8192, 256)
    assert len({p.question for p in training}) == 8192
    assert not {p.question for p in training} & {p.question for p in held_out}


def test_order_visits_every_prompt_once_an_epoch_and_depends_on_seed_and_step_alone():
    whole = [i for step in range(5) for i in step_indices(10, 4, seed=3, step=step)]
    assert sorted(whole[:10]) == list(range(10)) and sorted(whole[10:20]) == list(range(10))
    assert whole[:10] != whole[10:20]
    assert step_indices(10, 4, seed=3, step=2) == whole[8:12]
    assert step_indices(10, 4, seed=4, step=2) != whole[8:12]
