"""A sample of the table of bad inputs, of every kind; benchmarks/reliability/bad_inputs.py runs all of it."""

import shutil

import forked
import pytest
from refusing import fault
from table import all_cases

CASES = all_cases()
EACH = 32


def test_the_table_is_as_long_as_is_said():
    assert len(CASES) >= 500


@pytest.mark.parametrize("case", CASES[5::EACH], ids=lambda case: case.name)
def test_one_message_and_nothing_left_behind(case, request, tmp_path):
    run = request.getfixturevalue("trained") / "run" if case.needs_run else None
    assert fault(case, forked.server(), tmp_path / "here", run) is None
    shutil.rmtree(tmp_path / "here")
