"""The ``Accept`` header, which requests come from an ``EventSource``, and the responses that refuse a stream."""

from __future__ import annotations

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import StopReconnecting
from aiohttp_interceptors.web.request import (
    RETRY_WINDOW,
    _body_timeout,
    accepts_event_stream,
    is_event_source_request,
    not_acceptable,
    server_stopping,
    too_many_streams,
)

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
EVENT_SOURCE = {"Accept": "text/event-stream", "Pragma": "no-cache", "Cache-Control": "no-cache"}

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
def test_the_most_specific_matching_range_decides(accept, accepted):
    assert accepts_event_stream(accept) is accepted


@given(st.text() | st.lists(PIECES).map("".join))
def test_no_header_raises(accept):
    assert accepts_event_stream(accept) in (True, False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (EVENT_SOURCE, True),
        ({**EVENT_SOURCE, "User-Agent": CHROMIUM, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, True),
        ({**EVENT_SOURCE, "User-Agent": "node", "Sec-Fetch-Mode": "cors"}, True),  # npm eventsource
        ({"Accept": "text/event-stream", "Cache-Control": "no-cache", "User-Agent": CHROMIUM}, True),  # after a proxy
        ({"Accept": "text/event-stream", "Cache-Control": "max-age=0, no-cache", "Sec-Fetch-Mode": "cors"}, True),
        ({"Accept": "text/event-stream", "User-Agent": CHROMIUM, "Sec-Fetch-Mode": "cors"}, False),  # fetch
        ({"Accept": "text/event-stream", "Cache-Control": "no-store", "User-Agent": "python-httpx/0.28.1"}, False),
        (
            {"Accept": "text/event-stream", "Cache-Control": "no-cache", "User-Agent": "Python/3.11 aiohttp/3.14.5"},
            False,
        ),
        ({"Accept": "application/json", "User-Agent": "AsyncOpenAI/Python 3.57.0"}, False),
        ({"Accept": "*/*", "User-Agent": "curl/8.5.0"}, False),
        ({**EVENT_SOURCE, "Accept": "*/*"}, False),
        ({}, False),
    ],
)
def test_an_event_source_is_recognised_by_the_headers_that_the_standard_requires(headers, expected):
    """The headers of Chromium, npm eventsource, fetch in Chromium, httpx-sse, aiosseclient, openai and curl."""
    assert is_event_source_request(headers) == expected


@pytest.mark.parametrize(
    ("make", "status", "most"),
    [
        (lambda: server_stopping(20.0), 503, 20),
        (lambda: server_stopping(2.5), 503, 3),
        (lambda: server_stopping(0.0), 503, 1),
        (lambda: too_many_streams(per_key=False), 503, int(RETRY_WINDOW)),
        (lambda: too_many_streams(per_key=True), 429, int(RETRY_WINDOW)),
    ],
)
def test_retry_after_is_a_random_whole_second_so_that_clients_do_not_return_together(make, status, most):
    responses = [make() for _ in range(100 * most)]
    assert {response.status for response in responses} == {status}
    assert {response.headers["Retry-After"] for response in responses} == {str(n) for n in range(1, most + 1)}


@pytest.mark.parametrize(("make", "status"), [(not_acceptable, 406), (_body_timeout, 408), (StopReconnecting, 204)])
def test_a_refusal_that_would_be_repeated_has_no_retry_after(make, status):
    response = make()
    assert response.status == status
    assert "Retry-After" not in response.headers
    assert isinstance(response, web.HTTPException)
