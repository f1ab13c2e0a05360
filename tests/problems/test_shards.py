"""Files as they are met: shards, arrays named .jsonl, capitals, columns of no use, stand-ins for what was not downloaded."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from poweropd_lite.base.errors import UserError
from poweropd_lite.problems.files import digest_of, file_rows
from poweropd_lite.run.inputs import digest

ROWS = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path, columns=None):
    return [row for _, row in file_rows(path, "--data", columns)]


def test_a_folder_of_shards_is_read_in_the_order_of_its_names(tmp_path):
    for i in (2, 0, 1):
        table = pyarrow.Table.from_pylist(ROWS[2 * i : 2 * i + 2])
        pyarrow.parquet.write_table(table, tmp_path / f"train-0000{i}-of-00003.parquet")
    (tmp_path / "README.md").write_text("x")
    assert read(tmp_path) == ROWS
    before = digest_of(tmp_path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), tmp_path / "train-00001-of-00003.parquet")
    assert digest_of(tmp_path) != before
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"several sets \(test-00000-of-00001.parquet, train-00000-of-00003.parquet\); type"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002", "train-00001-of-00002"],
        ["part-0001", "part-0002"],
        ["shard_00", "shard_01"],
        ["0000", "0001"],
        [f"a.{i:02}" for i in range(1, 12)],
        ["data_v1"],
    ],
    ids=lambda names: names[0],
)
def test_names_that_count_up_are_shards(tmp_path, names):
    for name, row in zip(names, LINES.splitlines() * 2, strict=False):
        (tmp_path / f"{name}.jsonl").write_text(row)
    assert read(tmp_path) == (ROWS * 2)[: len(names)]


@pytest.mark.parametrize(
    "names",
    [
        ["aime24", "aime25"],
        ["data_v1", "data_v2"],
        ["math100", "math500"],
        ["aime-24", "aime-25"],
        ["math-100", "math-500"],
        ["data-1", "data-2"],
        ["part-00", "part-02"],
        ["part-01", "part-002"],
        ["train", "train-00"],
        ["train-00", "train-00000-of-00001"],
    ],
    ids=lambda names: names[-1],
)
def test_names_of_several_sets_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.jsonl").write_text(LINES)
    shown = ", ".join(sorted(f"{name}.jsonl" for name in names))
    with pytest.raises(UserError, match=rf"holds several sets \({shown}\); type --data with one file of it"):
        read(tmp_path)


def test_arrays_lines_and_capitals(tmp_path):
    for name, text in (("a.jsonl", json.dumps(ROWS, indent=1)), ("B.JSONL", LINES), ("C.JSON", json.dumps(ROWS))):
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name) == ROWS
        assert digest_of(tmp_path / name) == digest(tmp_path / name)
    (tmp_path / "lists.jsonl").write_text("[1]\n[2]\n")
    assert read(tmp_path / "lists.jsonl") == ["not an object"] * 2


def odd_parquet(path):
    """Text that is no UTF-8 and a date of the year 12,000, in columns that nobody asks for and in one that is asked for."""
    bad = pyarrow.array([b"\xff"] * 6, pyarrow.binary()).view(pyarrow.string())
    far = pyarrow.array([3_664_000] * 6, pyarrow.int32()).cast(pyarrow.date32())
    mixed = pyarrow.array([b"\xff", *(row["problem"].encode() for row in ROWS[1:])], pyarrow.binary())
    table = {"bad": bad, "far": far, "problem": mixed.view(pyarrow.string()), "answer": [row["answer"] for row in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def test_of_parquet_the_columns_that_are_used_are_read_and_the_others_named(tmp_path):
    odd_parquet(tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", {"problem", "answer", "error"})
    assert [row["answer"] for row in found] == [row["answer"] for row in ROWS]
    assert found[0] == {"bad": None, "far": None, "problem": b"\xff", "answer": "1"}  # a row that can't be used
    assert [row["problem"] for row in found[1:]] == [row["problem"] for row in ROWS[1:]]
    assert read(tmp_path / "a.parquet", {"nothing"}) == [dict.fromkeys(["bad", "far", "problem", "answer"])] * 6
    with pytest.raises(UserError, match="a.parquet can't be read: OverflowError"):
        read(tmp_path / "a.parquet")
    assert datetime.MAXYEAR < 12_000


def test_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["problem", "problem", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has the columns problem twice"):
        read(tmp_path / "a.parquet", {"problem"})
