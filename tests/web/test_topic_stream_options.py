from __future__ import annotations

import math
import re

import pytest

from aiohttp_interceptors import Hub, start_topic_stream, topic_stream


async def select_later(context, record):
    return False


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"select": 5}, TypeError, "select is a plain or an async function, not 5"),
        ({"select": lambda context: True}, TypeError, "select"),
        ({"select": select_later}, TypeError, "select is a plain function, called for each record, not <function"),
        ({"snapshot": ["x"]}, TypeError, "snapshot is a plain or an async function, not ['x']"),
        ({"snapshot": lambda: None}, TypeError, "snapshot"),
        ({"stream_ready": "x"}, TypeError, "stream_ready is a plain or an async function, not 'x'"),
        ({"stream_ready": lambda subscriber: None}, TypeError, "stream_ready"),
        ({"on_close": lambda context: None}, TypeError, "on_close"),
        ({"on_gap": "ignore"}, ValueError, "on_gap is one of signal, close, conflate, not 'ignore'"),
        ({"on_gap": None}, ValueError, "on_gap is one of signal, close, conflate, not None"),
        ({"gap_event": ""}, ValueError, "gap_event is the name of an event, not ''"),
        ({"gap_event": "a\nb"}, ValueError, "one line"),
        ({"gap_event": 5}, TypeError, "5"),
        ({"replay": -1}, ValueError, "replay is a number of records, 0 or more, or 'latest', not -1"),
        ({"replay": True}, TypeError, "replay is a number of records, 0 or more, or 'latest', not True"),
        ({"replay": None}, TypeError, "replay is a number of records, 0 or more, or 'latest', not None"),
        ({"retry": -1}, ValueError, "retry"),
        ({"retry": 1.5}, TypeError, "retry"),
        ({"heartbeat": 0}, ValueError, "heartbeat is more than 0 seconds, not 0; None means no heartbeat"),
        ({"stall_timeout": "5"}, TypeError, "stall_timeout is a number of seconds or None, not '5'"),
        ({"max_age": math.inf}, ValueError, "max_age is more than 0 seconds, not inf; None means no limit"),
        ({"replay": 5, "snapshot": lambda context: []}, ValueError, "not with both"),
    ],
)
def test_an_invalid_option_is_refused_when_the_interceptor_is_made(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        start_topic_stream(Hub(), "a", **options)


def test_an_unknown_option_is_refused_by_the_function_that_it_was_given_to():
    with pytest.raises(TypeError, match=r"^topic_stream\(\) has no option 'topic'$"):
        topic_stream(Hub(), "a", topic="b")


@pytest.mark.parametrize(
    "options",
    [
        {"select": lambda context, record: True},
        {"snapshot": lambda context: []},
        {"stream_ready": lambda subscriber, context: None, "on_close": lambda context, reason: None},
        {"on_gap": "close", "gap_event": "hole", "retry": 0},
        {"heartbeat": None, "stall_timeout": None, "max_age": None, "replay": 0},
    ],
)
def test_a_valid_option_is_accepted(options):
    assert start_topic_stream(Hub(), "a", **options).name == "start_topic_stream(a)"
