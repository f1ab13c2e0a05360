"""Where benchmarks come from and what is read of them: columns, golds, sizes, and what is said of the odd ones."""

import json

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.benchmarks import ALL, find_benchmarks, gold_answer, load_problems


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
    "row",
    [
        {"problem": "1+1?", "answer": "2"},
        {"question": "1+1?", "answer": "... #### 2"},
        {"question": "1+1?", "final_answer": ["2"]},
        {"prompt": [{"role": "user", "content": "1+1?"}], "solution": "\\boxed{2}"},
    ],
)
def test_the_usual_columns_are_found(tmp_path, pair, row):
    problems, said = load(write(tmp_path / "own.jsonl", [row]), pair)
    assert [(p.question, p.answer) for p in problems.prompts] == [("1+1?", "2")] and said == [] and problems.whole


def test_other_columns_are_named_by_flags_and_a_missing_one_is_an_error(tmp_path, pair):
    path = write(tmp_path / "own.jsonl", [{"q": "1+1?", "a": "2"}])
    problems, _ = load(path, pair, ("q", "a"))
    assert problems.prompts[0].answer == "2"
    with pytest.raises(
        UserError, match=r"own.jsonl has no column problem or question or prompt; it has q, a; type --prompt-column"
    ):
        load(path, pair)
    with pytest.raises(UserError, match="has no column b; it has q, a; type --answer-column"):
        load(path, pair, ("q", "b"))
    (own,) = find_benchmarks(str(path), flag="--eval-benchmarks")  # training's own evaluation has flags of its own
    with pytest.raises(UserError, match="has no column b; it has q, a; type --eval-answer-column"):
        load_problems(own, pair.tokenizer, load_config("bundled"), None, ("q", "b"), print)
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
    assert [p.tolerance for p in problems.prompts] == [0.1, None]
    assert "2 of 4 rows" in said[0] and "'error' is '1e999'" in said[0] and "'error' is '5%'" in said[0]
