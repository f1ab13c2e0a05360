"""No code of others runs: pickles, YAML tags, chat templates, auto_map, module names, answers. All by the real commands."""

import forked
import pytest
import table_code
from refusing import fault

CASES = table_code.cases()
SLOW = (
    "a known model",
    "parent_library",
    "sympy",
    "quantisation",
    "beside a checkpoint",
    "to be exported",
    "teacher's",
)


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.endswith(SLOW)], ids=lambda case: case.name)
def test_nothing_ran(case, tmp_path):
    assert fault(case, forked.server(), tmp_path / "here", None) is None


def test_the_same_pickle_runs_where_it_is_trusted(tmp_path):
    """Else the cases above would prove nothing. It is loaded in a process of its own, by torch and not by us."""
    (tmp_path / "a.bin").write_bytes(table_code.pickle(table_code.MAKES))
    forked.run("-c", "import torch; torch.load('a.bin', weights_only=False)", cwd=tmp_path)
    assert (tmp_path / "it-ran").exists()
