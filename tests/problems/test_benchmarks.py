"""Where benchmarks come from and what is read of them: columns, golds, sizes, and what is said of the odd ones."""

import json
import re

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.benchmarks import ALL, find_benchmarks, load_problems
from poweropd_lite.problems.reading import gold_answer

ASKED, SAID = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is \\boxed{2}."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, pair, columns=(None, None), limit=None, folder=None):
    said = []
    (benchmark,) = find_benchmarks(str(path), folder and str(folder))
    settings = load_config("bundled")
    return load_problems(benchmark, pair.tokenizer, settings, limit, columns, said.append), said


def test_the_seven_their_ids_and_sizes():
    found = {b.name: (b.source.data, b.source.subset, b.source.split, b.sizes) for b in find_benchmarks("all")}
    assert tuple(found) == ALL
    assert found["gsm8k"] == ("openai/gsm8k", "main", "test", (1319,))
    assert found["math500"] == ("HuggingFaceH4/MATH-500", None, "test", (500,))
    assert found["olympiadbench"][3] == (674, 675)
    assert [found[name][3] for name in ("amc23", "aime24", "aime25", "minerva")] == [(40,), (30,), (30,), (272,)]
    assert all(b.longest == 4096 for b in find_benchmarks("all"))


def test_names_files_and_hub_ids_may_stand_together(tmp_path):
    own = write(tmp_path / "own.jsonl", [{"problem": "1+1?", "answer": "2"}])
    found = find_benchmarks(f"bundled, {own},aime24,me/my-set:easy:dev, aime24")
    assert [b.name for b in found] == ["bundled", "own", "aime24", "my-set"]
    assert (found[3].source.data, found[3].source.subset, found[3].source.split) == ("me/my-set", "easy", "dev")
    assert [b.longest for b in found] == [112, 4096, 4096, 4096]


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "math50",
            ["no benchmark named 'math50'", "did you mean 'math500'?", "gsm8k, math500, amc23", "olympiadbench"],
        ),
        ("nonsense", ["no benchmark named 'nonsense'; known are gsm8k"]),
        (",", ["names no benchmark"]),
        ("missing.jsonl", ["no file of problems at missing.jsonl"]),
    ],
)
def test_an_unknown_one_is_refused_with_the_names(text, words):
    with pytest.raises(UserError) as error:
        find_benchmarks(text)
    assert all(word in str(error.value) for word in words)


def test_two_of_one_name_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    paths = [
        write(folder / "own.jsonl", [{"problem": "1+1?", "answer": "2"}]) for folder in (tmp_path, tmp_path / "sub")
    ]
    with pytest.raises(UserError, match="two benchmarks are named own"):
        find_benchmarks(",".join(map(str, paths)))


@pytest.mark.parametrize(
    "value, column, gold",
    [
        ("She has 48/2 = 24 left.\n#### 1,072", "answer", "1072"),
        ("so #### (3,4)", "answer", "(3,4)"),
        (float("nan"), "answer", None),
        ("\ud800", "answer", None),
        ("Adding gives \\boxed{1} and then \\boxed{204}.", "solution", "204"),
        ("no box here", "solution", None),
        (["$\\frac{1}{2}$"], "final_answer", "$\\frac{1}{2}$"),
        (["1", "3"], "final_answer", "1, 3"),
        (27.0, "answer", "27"),
        (0.25, "answer", "0.25"),
        (72, "answer", "72"),
        ("025", "answer", "025"),
        ("", "answer", None),
        (None, "answer", None),
        ([], "final_answer", None),
    ],
)
def test_golds_in_every_benchmark_s_own_form(value, column, gold):
    assert gold_answer(value, column) == gold


@pytest.mark.parametrize(
    "row, taken",
    [
        ({"problem": "1+1?", "answer": "2"}, "prompts from 'problem', answers from 'answer'"),
        ({"question": "1+1?", "answer": "... #### 2"}, "prompts from 'question', answers from 'answer'"),
        (
            {"problem": None, "question": "1+1?", "final_answer": ["2"]},
            "prompts from 'question', answers from 'final_answer'",
        ),
        ({"prompt": [ASKED], "solution": "\\boxed{2}"}, "prompts from 'prompt', answers from 'solution'"),
        ({"prompt": [ASKED, SAID], "answer": "2"}, "prompts from 'prompt', answers from 'answer'"),
        ({"messages": [ASKED, SAID]}, "prompts from 'messages', answers from the assistant's turn that ends them (1)"),
        (
            {
                "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
                "solution": "no box",
            },
            "prompts from 'conversations', answers from the assistant's turn that ends them (1)",
        ),
    ],
)
def test_the_usual_columns_are_found_and_said(tmp_path, pair, row, taken):
    path = write(tmp_path / "own.jsonl", [row])
    problems, said = load(path, pair)
    assert [(p.question, p.answer) for p in problems.prompts] == [("1+1?", "2")] and problems.whole
    assert said == [f"{path}: {taken}"]
    assert pair.tokenizer.decode(list(problems.prompts[0].ids)).partition("<think>")[0] == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_columns_are_named_by_flags_and_a_missing_one_is_an_error(tmp_path, pair):
    path = write(tmp_path / "own.jsonl", [{"q": "1+1?", "a": "2"}])
    problems, _ = load(path, pair, ("q", "a"))
    assert problems.prompts[0].answer == "2"
    for columns, flag, words in (
        (
            (None, None),
            "--benchmarks",
            "no column problem or question or prompt or messages or conversations; it has q, a\n",
        ),
        (("q", "b"), "--benchmarks", "no column b; it has q, a\n"),
        (
            ("q", "b"),
            "--eval-benchmarks",
            "no column b; it has q, a\n",
        ),  # training's own evaluation has flags of its own
    ):
        (own,) = find_benchmarks(str(path), flag=flag)
        typed = f"check {flag}, {flag.replace('benchmarks', 'prompt-column')} and {flag.replace('benchmarks', 'answer-column')}"
        with pytest.raises(UserError, match=re.escape(words)) as error:
            load_problems(own, pair.tokenizer, load_config("bundled"), None, columns, print)
        assert typed in str(error.value)
    known = write(tmp_path / "aime24.jsonl", [{"q": "1+1?", "a": "2"}])  # a copy may have columns of its own
    assert load("aime24", pair, ("q", "a"), folder=known.parent)[0].prompts[0].answer == "2"


def test_a_set_of_the_wrong_size_is_said_to_be_one(tmp_path, pair):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(30)]
    problems, said = load("aime24", pair, folder=write(tmp_path / "aime24.jsonl", rows).parent)
    assert problems.whole and said == []
    write(tmp_path / "aime24.jsonl", rows[:29])
    problems, said = load("aime24", pair, folder=tmp_path)
    assert not problems.whole and said == [
        "aime24 has 29 usable problems here and 30 in the original: scores won't compare"
    ]
    problems, said = load("aime24", pair, folder=tmp_path, limit=5)  # asked for, so nothing to say, but not whole
    assert len(problems.prompts) == 5 and not problems.whole and said == []
    problems, said = load(tmp_path / "aime24.jsonl", pair)  # a copy by its path is the benchmark too
    assert problems.benchmark.name == "aime24" and not problems.whole and len(said) == 1


def test_what_can_not_be_used_is_counted_and_named(tmp_path, pair):
    path = tmp_path / "own.jsonl"
    rows = [
        {"problem": "1+1?", "answer": "2"},
        {"problem": "?", "answer": ""},
        {"problem": "long " * 200, "answer": "1"},
    ]
    write(path, rows).write_text(path.read_text() + "{half a line\n")
    problems, said = load(path, pair)
    assert len(problems.prompts) == 1 and not problems.whole
    assert said[0].startswith(f"3 of 4 rows of {path} can't be used:") and "no reference answer in 'answer'" in said[0]
    assert "more than max_prompt_tokens 128" in said[0] and "line 4: not JSON" in said[0]
    with pytest.raises(UserError, match="no usable problem in .*empty.jsonl:\n  it has no rows"):
        load(write(tmp_path / "empty.jsonl", []), pair)


def test_a_tolerance_comes_from_the_column_error(tmp_path, pair):
    rows = [{"problem": "x?", "answer": "4.2", "error": "1e-1"}, {"problem": "y?", "answer": "4.2", "error": None}]
    rows += [{"problem": "z?", "answer": "4.2", "error": "1e999"}, {"problem": "z?", "answer": "4.2", "error": "5%"}]
    problems, said = load(write(tmp_path / "own.jsonl", rows), pair)
    assert [p.tolerance for p in problems.prompts] == [0.1, None, None, None]
    _, said = said  # the first is of the columns
    assert said.startswith("2 problems of ") and said.endswith(
        "column 'error' holds no largest difference (such as 1e-1), and is not used"
    )
    values = {"0.01 m": 0.01, "1e-1,1e-2": 0.01, "timeout": None, False: None, "0": None, "nan": None}
    rows = [{"problem": "x?", "answer": "4.2", "error": value} for value in values]
    problems, said = load(write(tmp_path / "own.jsonl", rows), pair)
    assert [p.tolerance for p in problems.prompts] == list(values.values())
    assert [line.split(" of ")[0] for line in said[1:]] == ["1 problems"]  # the word alone is odd


def test_the_answer_of_a_worked_solution_is_its_last_box_and_one_without_is_said(tmp_path, pair):
    rows = [{"problem": f"{n}+1?", "answer": f"It is \\boxed{{{n}}}, no, \\boxed{{{n + 1}}}."} for n in range(3)]
    rows.append({"problem": "4+1?", "answer": "4 + 1 is four and one.\nSo it is 5."})
    problems, said = load(write(tmp_path / "own.jsonl", rows), pair)
    assert [p.answer for p in problems.prompts[:3]] == ["1", "2", "3"]
    assert said[1].startswith("3 problems of ") and "what stands in the last box" in said[1]
    assert said[2].startswith("1 problems of ") and "type --answer-column with a column of final answers" in said[2]


def test_bytes_are_text_or_refused(tmp_path, pair):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"problem": [b"1+1?", b"2+2?", "é?".encode("latin1")], "answer": [b"2", b"\xff\xfe", b"3"]})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    problems, said = load(tmp_path / "own.parquet", pair)
    assert [(p.question, p.answer) for p in problems.prompts] == [("1+1?", "2")]
    assert (
        said[0].startswith("2 of 3 rows")
        and "no reference answer in 'answer'" in said[0]
        and "not UTF-8 text" in said[0]
    )


def test_a_row_without_the_key_is_left_out_and_one_with_tool_calls(tmp_path, pair):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 4}}}]}
    talk = [
        {"role": "user", "content": "4?"},
        call,
        {"role": "tool", "content": "9"},
        {"role": "user", "content": "So?"},
    ]
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?"}, {"answer": "3"}, {"problem": talk, "answer": "9"}]
    problems, said = load(write(tmp_path / "own.jsonl", rows), pair)
    assert [p.answer for p in problems.prompts] == ["2"]
    assert (
        said[0].startswith("3 of 4 rows")
        and "line 2: no column answer or final_answer or expected_answer or solution; it has problem" in said[0]
    )
    assert "line 4: 'problem' holds tool calls" in said[0]
