from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.web.request import accepts_event_stream, is_of_event_source

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
OF_EVENT_SOURCE = {"Accept": "text/event-stream", "Pragma": "no-cache", "Cache-Control": "no-cache"}

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


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (OF_EVENT_SOURCE, True),
        ({**OF_EVENT_SOURCE, "User-Agent": CHROMIUM, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, True),
        ({**OF_EVENT_SOURCE, "User-Agent": "node", "Sec-Fetch-Mode": "cors"}, True),  # npm eventsource
        ({"Accept": "text/event-stream", "Cache-Control": "no-cache", "User-Agent": CHROMIUM}, True),  # by a proxy
        ({"Accept": "text/event-stream", "Cache-Control": "max-age=0, no-cache", "Sec-Fetch-Mode": "cors"}, True),
        ({"Accept": "text/event-stream", "User-Agent": CHROMIUM, "Sec-Fetch-Mode": "cors"}, False),  # fetch
        ({"Accept": "text/event-stream", "Cache-Control": "no-store", "User-Agent": "python-httpx/0.28.1"}, False),
        (
            {"Accept": "text/event-stream", "Cache-Control": "no-cache", "User-Agent": "Python/3.11 aiohttp/3.14.5"},
            False,
        ),
        ({"Accept": "application/json", "User-Agent": "AsyncOpenAI/Python 3.57.0"}, False),
        ({"Accept": "*/*", "User-Agent": "curl/8.5.0"}, False),
        ({**OF_EVENT_SOURCE, "Accept": "*/*"}, False),
        ({}, False),
    ],
)
def test_an_event_source_is_known_by_what_the_standard_has_it_send(headers, expected):
    """As seen of Chromium, npm eventsource, fetch in Chromium, httpx-sse, aiosseclient, openai and curl."""
    assert is_of_event_source(headers) == expected
