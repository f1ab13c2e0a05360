"""The last balanced boxed answer, exactly."""

import pytest

from poweropd_lite.grade import boxed_answer, is_correct

CASES = [
    (r"so \boxed{42}", "42"),
    (r"\boxed{1} no, \boxed{2}.", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{ 7 }", "7"),
    (r"\boxed{3} then \boxed{4", "3"),
    (r"\boxed{}", ""),
    ("42", None),
    ("", None),
    (r"\boxed 5", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


def test_is_correct():
    assert is_correct(r"\boxed{42}", " 42 ")
    assert not is_correct(r"\boxed{42}", "4")
    assert not is_correct("42", "42")
