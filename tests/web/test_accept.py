from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.web.accept import accepts_event_stream

PIECES = st.sampled_from(
    [
        "text/event-stream",
        "TEXT/*",
        "*/*",
        "text",
        "/",
        ";",
        ",",
        "q",
        "=",
        "0",
        "1",
        ".",
        "nan",
        "inf",
        '"',
        " ",
        "\udce9",
    ]
)


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        (None, True),
        ("", True),
        (" \t", True),
        ("text/event-stream", True),
        ("TEXT/Event-Stream", True),
        ("text/*", True),
        ("*/*", True),
        ("text/html, */*;q=0.1", True),
        ("text/html,application/json", False),
        ("application/*", False),
        ("text/event-stream-2", False),
        ("text/event-stream; charset=utf-8", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.000", False),
        ("text/event-stream ; Q=0", False),
        ("text/event-stream; q = 0", False),
        ("text/event-stream;q=0.001", True),
        ("*/*;q=0", False),
        ("text/event-stream;q=0, */*", False),
        ("*/*, text/*;q=0", False),
        ("*/*;q=0, text/event-stream", True),
        ("text/event-stream, text/*;q=0, */*;q=0", True),
        ("text/event-stream;q=many", True),
        ("garbage", False),
        (",", False),
        (",,text/event-stream,,", True),
        (";q=1", False),
    ],
)
def test_the_most_exact_range_that_matches_decides(accept, accepted):
    assert accepts_event_stream(accept) is accepted


@given(st.text() | st.lists(PIECES).map("".join))
def test_a_client_cannot_make_it_raise(accept):
    assert accepts_event_stream(accept) in (True, False)
