"""The ready-made interceptors in one chain, in the order that the documentation recommends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from aiohttp import web

from aiohttp_interceptors import ContextKey, RequestContext, event_stream
from aiohttp_interceptors.ready import (
    bearer,
    cors,
    csrf,
    json_body,
    negotiate,
    problem_details,
    rate_limit,
    request_id,
    request_log,
    security_headers,
    server_timing,
    timeout,
)
from tests.ready.site import KINDS, application
from tests.waiting import until

ORIGIN = "https://example.com"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "ready.md"
TEXT = ContextKey[str]("text")


def outer(requests: int = 100):
    return [
        request_id(),
        request_log(),
        server_timing(),
        security_headers(),
        cors([ORIGIN]),
        problem_details({LookupError: 404}, unexpected=True),
        csrf(origins=[ORIGIN]),
        rate_limit(requests, 60, key=lambda context: "all"),
        timeout(60),
    ]


COMMON = {
    *("X-Request-ID", "Server-Timing", "X-Content-Type-Options", "Access-Control-Allow-Origin", "RateLimit", "Vary"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_of_each_kind_has_the_headers_of_all(site, fetch, logged, kind):
    server = await site(*outer(), handler=KINDS[kind]())
    status, headers, _ = await fetch(server, headers={"Origin": ORIGIN, "X-Request-ID": "7"})
    assert status in (200, 302, 403)
    assert set(headers) >= COMMON
    end = "stream_request_closed" if kind in ("stream", "topic") else "request"
    await until(lambda: end in [line["event"] for line in logged])
    lines = [line for line in logged if line["event"] in ("request", "stream_request_opened", "stream_request_closed")]
    assert {line["request_id"] for line in lines} == {"7"}


async def test_refusals_and_errors_are_problems_with_the_headers_of_all(serve, fetch, raised):
    async def handler(request: web.Request) -> web.Response:
        raise {"lookup": LookupError, "unexpected": ZeroDivisionError}[request.query["error"]]

    server = await serve(application("middleware", outer(requests=4), handler))
    own = {"Origin": ORIGIN}
    for options, expected in (
        ({"path": "/?error=lookup", "headers": own}, 404),
        ({"path": "/?error=unexpected", "headers": own}, 500),
        ({"path": "/none", "headers": own}, 404),
        ({"method": "POST", "headers": {"Sec-Fetch-Site": "cross-site"}}, 403),
        ({"path": "/?error=lookup", "headers": own}, 404),
        ({"path": "/?error=lookup", "headers": own}, 429),
    ):
        status, headers, text = await fetch(server, **options)
        assert (status, json.loads(text)["status"]) == (expected, expected)
        assert headers["Content-Type"] == "application/problem+json"
        assert set(headers) >= COMMON - ({"Access-Control-Allow-Origin", "RateLimit"} if expected == 403 else set())
    assert headers["Retry-After"] == "15"
    assert raised() == []


async def test_a_stream_over_post_reads_its_body_behind_all_of_them(site, fetch):
    @event_stream
    async def handler(context: RequestContext):
        yield context[TEXT]

    route = [bearer(lambda token: {"sub": token}), negotiate("text/event-stream"), json_body(TEXT, str)]
    server = await site(*outer(), *route, handler=handler)
    headers = {"Authorization": "Bearer a", "Content-Type": "application/json", "Origin": ORIGIN}
    assert (await fetch(server, "POST", data='"hello"', headers=headers))[2] == "data: hello\n\n"
    status, _, text = await fetch(server, "POST", data='"hello', headers=headers)
    assert (status, json.loads(text)["detail"].startswith("The body is not JSON: ")) == (400, True)


def test_the_programs_of_the_documentation_are_valid_and_name_all_interceptors():
    text = DOCUMENTATION.read_text()
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(program, DOCUMENTATION.name, "exec", flags=0x2000)  # top-level await and yield are allowed
    names = {path.stem for path in (Path(__file__).parents[2] / "aiohttp_interceptors" / "ready").glob("[a-z]*.py")}
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == names
