"""Messages are short and printable; a boundary says what libraries raise in one of them."""

import logging
import warnings

import pytest

from poweropd_lite.base.errors import NotDownloaded, UserError, message, printable
from poweropd_lite.base.explained import explained, not_downloaded


def test_what_a_terminal_or_page_would_obey_is_left_out():
    assert printable("a\x1b[31mb\x07\x00c\u202ed\u2066\td\ne\x9bf\r\ud800") == "a[31mbcd\td\nef?"
    assert (
        printable("naïve 東京 😀 مرحبا \u200d") == "naïve 東京 😀 مرحبا \u200d"
    )  # scripts, and what joins an emoji, stay


def test_a_message_is_never_longer_than_a_screen_or_two():
    said = message(UserError("\n".join(["x" * 10_000] * 10_000)))
    assert len(said) < 100_000 and said.endswith("...") and "8,500 letters" in said
    assert message(UserError("alpha: found 0")) == "alpha: found 0"


def test_whatever_is_raised_becomes_one_message_and_what_was_logged_before_is_not_said(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)  # as transformers sets it where the variable CI is
    for error in (KeyError("x"), RecursionError(), ZeroDivisionError("by zero"), ImportError("pip install optimum")):
        there = explained("no model at 'm'", str(tmp_path), "type another")
        with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError) as said, there:
            warnings.warn("odd", stacklevel=1)
            logger.warning("LOAD REPORT")
            raise error
        assert str(said.value).startswith("no model at 'm': ") and str(said.value).endswith("\ntype another")
        assert (type(error).__name__ in str(said.value)) == (not isinstance(error, ImportError))
        assert not warned
    assert "LOAD REPORT" not in caplog.text
    with pytest.warns(UserWarning, match="odd"), explained("", str(tmp_path), ""):
        warnings.warn("odd", stacklevel=1)
        logger.warning("said once it ended well")
    assert "said once it ended well" in caplog.text


def test_memory_that_ran_out_and_a_card_that_failed_are_no_fault_of_a_folder(tmp_path):
    for error in (
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ):
        with pytest.raises(type(error)), explained("no model at 'm'", str(tmp_path), ""):
            raise error
    with pytest.raises(UserError, match="header too large"), explained("no model", str(tmp_path), ""):
        raise RuntimeError("header too large")


def test_a_hub_that_does_not_answer_hides_no_reason(monkeypatch):
    monkeypatch.setattr("poweropd_lite.base.explained.settle_hub", lambda: "the hub can't be reached")
    with pytest.raises(UserError, match="the hub can't be reached; Unknown split"), explained("no data", "a/b", ""):
        raise ValueError('Unknown split "trian"')


def test_what_only_the_hub_has_is_told_apart():
    """By transformers itself, which looks in its cache alone here; whatever else is wrong is no such case."""
    from transformers import AutoTokenizer

    with pytest.raises(NotDownloaded) as found, explained("no tokenizer", "no-one/has-this", "type another"):
        AutoTokenizer.from_pretrained("no-one/has-this")
    assert found.value.found.startswith("no tokenizer: ")
    assert str(found.value) == f"{found.value.found}\nstart it where the hub can be reached, or type another"
    with pytest.raises(UserError) as other, explained("no tokenizer", "no-one/has-this", "type another"):
        raise ValueError("it is damaged")
    assert not isinstance(other.value, NotDownloaded)


def test_a_pointer_and_a_page_are_told_apart_from_the_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "a.safetensors is a git-lfs pointer" in not_downloaded(tmp_path)
    with pytest.raises(UserError, match="no weights: .*git lfs pull"), explained("no weights", str(tmp_path), ""):
        raise ValueError("header too large")
    (tmp_path / "a.safetensors").write_bytes(b"\n<!DOCTYPE HTML>")
    assert "is a page of HTML" in not_downloaded(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"{}")
    assert not_downloaded(tmp_path) is None
