"""A few examples of every kind of benchmarks/reliability/fuzz.py, always the same ones; none may raise."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "reliability"))

import fuzz

KINDS = {"config": 60, "yaml": 60, "rows": 30, "file": 60, "state": 15, "tensor": 15, "numbers": 40}


@pytest.fixture(scope="module")
def fuzzed(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzzed")
    shutil.copytree(trained / "run", place / "run")
    return fuzz.Fuzz(place)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_raises(fuzzed, kind):
    tried = []
    assert fuzz.fuzz(fuzzed.targets()[kind], 1, KINDS[kind], lambda: tried.append(kind)) is None
    assert len(tried) > KINDS[kind] / 4


def test_a_fault_is_found(fuzzed):
    """Else the test above would prove nothing."""

    def raises(answer, gold):
        assert "7" not in answer

    work = fuzzed.targets()["grader"]
    work.hypothesis.inner_test = raises
    found = fuzz.fuzz(work, 0, 500, lambda: None)
    assert found is not None and "AssertionError" in found
