"""Files that are whole or absent."""

import pytest

from poweropd_lite.base.files import write_text


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    """Half a character can't be written as UTF-8: the write breaks off, as on a full disk."""
    write_text(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "x" * 100_000 + "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
