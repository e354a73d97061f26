"""Numbers that cannot be meant are refused with their value."""

from __future__ import annotations

import pytest

from aiohttp_interceptors._checks import check_count, check_seconds


@pytest.mark.parametrize("value", [1, 2.5, 1e9])
def test_a_number_of_seconds_is_one(value):
    check_seconds("age", value, "")


@pytest.mark.parametrize(
    ("value", "none", "least", "error", "message"),
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
def test_what_is_none_is_refused(value, none, least, error, message):
    with pytest.raises(error) as raised:
        check_seconds("age", value, none, least)
    assert str(raised.value) == message


def test_the_least_may_be_reached_and_none_may_mean_something():
    check_seconds("age", 0, "", least=0)
    check_seconds("age", 120, "", least=120)
    check_seconds("age", None, "for ever", least=120)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_a_count_is_a_whole_number_and_enough(value, error):
    check_count("records", 1, 1)
    with pytest.raises(error, match=r"records is .*, not "):
        check_count("records", value, 1)
