"""docs/reliability.md says what the committed results say."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "reliability")
    import run

    doc = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = (line for line in doc.split("\n") if line.startswith("| `") and ".py`" in line)
    rows = {line.split("`")[1].removesuffix(".py"): line for line in named}
    cells = run.cells()
    sys.modules.pop("run")
    assert rows.keys() == cells.keys()
    assert [name for name in cells if not rows[name].endswith(f"| {cells[name]} |")] == []
