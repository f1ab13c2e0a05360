"""A user's function that scores: what it gives, and all that can go wrong with it, in the judges' real processes."""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import function_fault
from poweropd_lite.checks.grader import check_grader
from poweropd_lite.evaluate.scores import best_of, pass_at
from poweropd_lite.grade.custom import ENDED, find_grader, score

MODULE = """
import os, subprocess, sys
print("imported", input) or sys.stdin.read()

def said(completion, row):
    print("a line that is no score")
    kind = row["kind"]
    if kind == "share":
        return len(completion.split()) / row["words"]
    if kind == "bool":
        return completion == "yes"
    if kind == "fails":
        return row["nothing"]
    if kind == "ends":
        os._exit(0)
    if kind == "memory":
        return len(bytearray(2**31))
    if kind == "runs on":
        open("child", "w").write(str(subprocess.Popen(["sleep", "3600"]).pid))
        while True:
            pass
    return {"none": None, "nan": float("nan"), "text": "1", "huge": 10**400}[kind]

def one(completion):
    return 1.0
"""
CASES = [
    ("a b c", {"kind": "share", "words": 4}, 0.75, None),
    ("yes", {"kind": "bool"}, 1.0, None),
    ("", {"kind": "fails"}, 0.0, "KeyError: 'nothing' (judged.py, line 13)"),
    ("", {"kind": "none"}, 0.0, "TypeError: it returned None, which is no number"),
    ("", {"kind": "text"}, 0.0, "TypeError: it returned '1', which is no number"),
    ("", {"kind": "nan"}, 0.0, "ValueError: it returned nan, which is no finite number"),
    ("", {"kind": "huge"}, 0.0, "OverflowError: int too large to convert to float"),
    ("", {"kind": "memory"}, 0.0, "MemoryError: (judged.py, line 17)"),
    ("", {"kind": "ends"}, 0.0, ENDED),
    ("", {"kind": "runs on"}, 0.0, ENDED),
    ("\ud800\n2", {"kind": "share", "words": 1}, 2.0, None),  # half of a character, and a line end
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judged.py").write_text(MODULE)
    return tmp_path


def test_scores_are_the_function_s_own_and_what_fails_is_counted_and_told(folder):
    grader = find_grader("judged:said")
    told = []
    found = score(grader, [(text, json.dumps(row)) for text, row, _, _ in CASES], lambda *done: told.append(done))
    assert [(one.score, one.fault) for one in found] == [(value, fault) for _, _, value, fault in CASES]
    assert sum(one.undecided for one in found) == 8 and told[-1] == (11, 11)
    child = int((folder / "child").read_text())  # ended with what started it
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"process {child} outlives its worker")


def test_one_that_can_not_be_called_is_a_message(folder):
    Path("stops.py").write_text("raise SystemExit(3)")
    Path("faulty.py").write_text("import json\njson.loads('{')")
    here = f"in {os.getcwd()}, nor one that is installed"
    for name, what in (
        ("nowhere:score", f"there is no module nowhere {here}"),
        ("judged.more:score", f"there is no module judged.more {here}"),
        ("judged:saying", "has no function saying; it has said, one"),
        ("judged:one", "can't be called as one(completion, row): too many positional arguments"),
        ("faulty:score", "importing faulty fails: JSONDecodeError"),
        ("stops:score", "importing stops fails: SystemExit: 3"),
    ):
        with pytest.raises(UserError) as caught:
            check_grader(name, "--grader")
        said = str(caught.value)
        assert said.startswith(f"--grader {name}: ") and what in said and said.endswith("my_grader.py in this folder")
    (folder / "judged.py").write_text(MODULE + "\n# another text\n")
    for name, meant in (
        ("judged.py:said", "judged:said"),
        ("./a/b.py:f", "a.b:f"),
        ("said", "said:score"),
        ("a:b:c", "a:b:c"),
    ):
        assert f"such as {meant}" in function_fault(name)
    assert function_fault("a.b_1:f") is None is function_fault(None)


def test_the_best_of_k_is_the_mean_over_all_draws_and_pass_at_k_of_zeros_and_ones():
    values = np.array([[0.2, -1.0, 0.5, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    for k in (1, 2, 4, 5):
        draws = [[max(draw) for draw in itertools.combinations(row, k)] for row in values]
        assert best_of(values, k) == pytest.approx(np.mean(draws, axis=1))
        binary = np.array([[1.0] * right + [0.0] * (5 - right) for right in range(6)])
        assert best_of(binary, k) == pytest.approx(pass_at(range(6), 5, k))


def test_what_a_function_starts_keeps_no_one_waiting(tmp_path, monkeypatch):
    """A copy of the process holds the worker's pipe open; one returns too; one catches the timers; faults are larger than a pipe."""
    (tmp_path / "starts.py").write_text(
        "import os, signal, time\n"
        "def hangs(completion, row):\n"
        "    if completion == 'forks':\n"
        "        os.fork()\n"
        "        while True: pass\n"
        "    if completion == 'twice':\n"
        "        os.fork()\n"
        "    return 0.5\n"
        "def tells(completion, row):\n"
        "    raise ValueError('\\u4e2d' * 400 + '\\ud83d')\n"
    )
    monkeypatch.chdir(tmp_path)
    grader = find_grader("starts:hangs", anew=True)
    found = score(grader, [(each, "{}") for each in ("plain", "forks", "twice", "plain")])
    assert [s.score for s in found] == [0.5, 0.0, 0.5, 0.5] and [s.undecided for s in found] == [
        False,
        True,
        False,
        False,
    ]
    row = json.dumps({"document": "x" * 20_000})
    found = score(find_grader("starts:tells", anew=True), [("a", row)] * 300)
    assert {s.fault for s in found} == {("ValueError: " + "中" * 400)[:300] + " (starts.py, line 10)"}
