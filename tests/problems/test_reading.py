"""Training's own data: the columns that are found, messages with their answer, prompts that are held out, reasons said once."""

import hashlib
import json

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped


def load(path, pair, rows, **settings):
    """Returns prompts, skipped rows and what was said of a file of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    config = load_config("bundled", data=str(path), **settings)
    prompts, skipped = load_prompts(config, pair.tokenizer, say=said.append)
    return prompts, skipped, [line.replace(str(path), "FILE") for line in said]


def test_rows_may_have_columns_of_their_own_which_are_counted(tmp_path, pair):
    rows = [{"question": f"{n}+1?", "final_answer": str(n + 1)} for n in range(3)] + [{"prompt": "7+1?"}]
    prompts, skipped, said = load(tmp_path / "own.jsonl", pair, rows)
    assert [(p.question, p.answer) for p in prompts] == [("0+1?", "1"), ("1+1?", "2"), ("2+1?", "3"), ("7+1?", None)]
    assert said == ["FILE: prompts from 'question' (3), 'prompt' (1), answers from 'final_answer' (3)"] and not skipped


def test_messages_that_end_with_the_assistant_are_prompt_and_answer(tmp_path, pair):
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+3?"},
        {"role": "assistant", "content": "It is \\boxed{5}."},
    ]
    prompts, skipped, said = load(tmp_path / "own.jsonl", pair, [{"messages": talk}, {"messages": talk[:3]}])
    assert [p.answer for p in prompts] == ["5", None] and prompts[0].ids == prompts[1].ids and not skipped
    assert (
        pair.tokenizer.decode(list(prompts[0].ids))
        .partition("<think>")[0]
        .endswith("And 2+3?<|im_end|>\n<|im_start|>assistant\n")
    )
    assert said == ["FILE: prompts from 'messages', answers from the assistant's turn that ends them (1)"]


def test_a_column_that_is_named_and_not_there_is_said_once(tmp_path, pair):
    rows = [{"problem": "1+1?", "a": "2"}, *({"problem": f"{n}?"} for n in range(40))]
    prompts, skipped, said = load(tmp_path / "own.jsonl", pair, rows, answer_column="a")
    assert [p.answer for p in prompts] == ["2", *[None] * 40] and not skipped  # no answer is needed to learn
    assert said == ["FILE: prompts from 'problem', answers from 'a' (1)"]
    prompts, skipped, said = load(
        tmp_path / "own.jsonl", pair, [{"q": "1+1?", "problem": ""}, *rows], prompt_column="q"
    )
    say_skipped(skipped, len(prompts), "FILE", said.append)
    assert said[-1].replace(str(tmp_path / "own.jsonl"), "FILE") == (
        "41 of 42 rows of FILE can't be used:\n  FILE, line 2: no column q; it has problem, a\n  FILE, line 3 and 39 more: no "
        "column q; it has problem"
    )
    with pytest.raises(UserError, match="line 1 and 2 more: no column q; it has problem\ncheck --data"):
        load(tmp_path / "own.jsonl", pair, rows[1:4], prompt_column="q")


def test_an_empty_cell_is_passed_over(tmp_path, pair):
    row = {"problem": "", "question": "2+3?", "answer": None, "final_answer": "5"}
    prompts, _, said = load(tmp_path / "own.jsonl", pair, [row])
    assert [(p.question, p.answer) for p in prompts] == [("2+3?", "5")]
    assert said == ["FILE: prompts from 'question', answers from 'final_answer'"]


def test_held_out_are_the_prompts_of_smallest_hash_with_their_copies(tmp_path, pair):
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in range(20)]
    prompts, _, _ = load(tmp_path / "own.jsonl", pair, rows + rows[:10])
    training, kept = hold_out(prompts, 6, "own.jsonl")

    def by_hand(row):
        return hashlib.sha256(json.dumps([["user", row["problem"]]]).encode()).hexdigest()

    wanted = {row["problem"] for row in sorted(rows, key=by_hand)[:6]}
    assert {p.question for p in kept} == wanted and len(kept) == 6 and all(p.answer for p in kept)
    copies = sum(row["problem"] in wanted for row in rows + rows[:10])
    assert len(training) == 30 - copies > 0 and not wanted & {p.question for p in training}
    # Other rows before them move none of them but by being held out themselves.
    more, _, _ = load(tmp_path / "more.jsonl", pair, [{"problem": f"{n}+2?", "answer": "1"} for n in range(5)] + rows)
    again = {p.question for p in hold_out(more, 6, "more.jsonl")[1]}
    assert len(wanted - again) == len([q for q in again if q.endswith("+2?")])
    with pytest.raises(UserError, match="--hold-out 20 leaves no prompt of own.jsonl to train on: it has 20 different"):
        hold_out(prompts, 20, "own.jsonl")
