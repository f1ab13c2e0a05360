"""Files that are whole or absent."""

import pytest

from poweropd_lite.base.files import free_folder, write_text


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    """Half a character can't be written as UTF-8: the write breaks off, as on a full disk."""
    write_text(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "x" * 100_000 + "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_free_folder_is_a_new_one(tmp_path):
    made = [free_folder(tmp_path / "a" / "b", "run").name for _ in range(3)]
    assert made == ["run", "run-2", "run-3"] == sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    (tmp_path / "a" / "b" / "run-2").rmdir()
    (tmp_path / "a" / "b" / "other").write_text("a file's name is taken too")
    assert free_folder(tmp_path / "a" / "b", "run").name == "run-2"
    assert free_folder(tmp_path / "a" / "b", "other").name == "other-2"
