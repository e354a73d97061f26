from __future__ import annotations

import pytest

from aiohttp_interceptors import Event, event_stream, start_event_stream


def ready(channel, context):
    pass


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"stall_timeout": 0}, ValueError, "stall_timeout is more than 0 seconds, not 0; None means no limit"),
        ({"stall_timeout": float("nan")}, ValueError, "stall_timeout is more than 0 seconds, not nan"),
        ({"stall_timeout": "60"}, TypeError, "stall_timeout is a number of seconds or None, not '60'"),
        ({"max_age": -1}, ValueError, "max_age is more than 0 seconds, not -1; None means no limit"),
        ({"max_age": float("inf")}, ValueError, "max_age is more than 0 seconds, not inf"),
        ({"max_age": False}, TypeError, "max_age is a number of seconds or None, not False"),
        ({"max_event_size": 0}, ValueError, "max_event_size is a number of bytes, 1 or more, or None, not 0"),
        ({"max_event_size": 1e6}, TypeError, "max_event_size is a number of bytes, 1 or more, or None, not 1000000.0"),
        ({"max_event_size": True}, TypeError, "max_event_size is a number of bytes, 1 or more, or None, not True"),
        ({"error_event": "error"}, TypeError, "error_event is a plain or an async function, not 'error'"),
        ({"error_event": lambda: None}, TypeError, r"error_event is called as error_event\(exception\), which .* does"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_invalid_options_are_refused_when_the_interceptor_is_made(option, error, message):
    with pytest.raises(error, match=message):
        start_event_stream(ready, **option)
    with pytest.raises(error, match=message):
        event_stream(**option)(ready)


@pytest.mark.parametrize(
    "option",
    [
        {"stall_timeout": None},
        {"stall_timeout": 1},
        {"max_age": None},
        {"max_age": 0.5},
        {"max_event_size": None},
        {"max_event_size": 1},
        {"error_event": None},
        {"error_event": Event("broken", "error")},
        {"error_event": lambda error: Event(str(error))},
        {"finite": True},
        {"strict": True},
    ],
)
def test_valid_options_are_accepted(option):
    assert start_event_stream(ready, **option).name == "start_event_stream(ready)"
    assert event_stream(**option)(ready).__name__ == "ready"
