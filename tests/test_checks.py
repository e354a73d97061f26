"""Checks of numbers: a wrong one is refused with its value."""

from __future__ import annotations

import pytest

from aiohttp_interceptors._checks import check_count, check_seconds


@pytest.mark.parametrize("value", [1, 2.5, 1e9])
def test_numbers_of_seconds_are_accepted(value):
    check_seconds("age", value, "")


@pytest.mark.parametrize(
    ("value", "none_means", "minimum", "error", "message"),
    [
        (None, "", None, TypeError, "age is a number of seconds, not None"),
        ("1", "no limit", None, TypeError, "age is a number of seconds or None, not '1'"),
        (True, "", None, TypeError, "age is a number of seconds, not True"),
        (0, "", None, ValueError, "age is more than 0 seconds, not 0"),
        (float("nan"), "", None, ValueError, "age is more than 0 seconds, not nan"),
        (float("inf"), "", 0, ValueError, "age is 0 seconds or more, not inf"),
        (-1, "", 0, ValueError, "age is 0 seconds or more, not -1"),
        (119, "for ever", 120, ValueError, "age is 120 seconds or more, not 119; None means for ever"),
    ],
)
def test_wrong_numbers_of_seconds_are_refused_with_their_value(value, none_means, minimum, error, message):
    with pytest.raises(error) as raised:
        check_seconds("age", value, none_means, minimum)
    assert str(raised.value) == message


def test_the_minimum_and_a_meaningful_none_are_accepted():
    check_seconds("age", 0, "", minimum=0)
    check_seconds("age", 120, "", minimum=120)
    check_seconds("age", None, "for ever", minimum=120)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_a_count_is_an_int_of_at_least_the_minimum(value, error):
    check_count("records", 1, 1)
    with pytest.raises(error, match=r"records is .*, not "):
        check_count("records", value, 1)
