"""``uncaught_exception``: what the client gets, and what is logged."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import Interceptor, RequestContext, interceptor_middleware, uncaught_exception


async def broken(request: web.Request) -> web.Response:
    raise LookupError("a secret")


async def half_way(request: web.Request) -> web.Response:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    raise LookupError("a secret")


async def ask(serve, handler, **options: object) -> bytes:
    app = web.Application(middlewares=[interceptor_middleware(uncaught_exception(**options))])
    app.router.add_get("/page", handler)
    return await (await serve(app)).exchange("GET /page HTTP/1.1\nHost: x\nConnection: close\n\n")


async def test_the_client_gets_500_without_details_and_the_exception_is_logged(serve, logged, caplog):
    answer = await ask(serve, broken)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"Content-Type: text/plain" in answer
    assert b"secret" not in answer
    (record,) = [line for line in logged if line["log_level"] == "error"]
    assert (record["event"], record["interceptor"], record["stage"]) == ("uncaught_exception", "broken", "enter")
    assert (record["method"], record["path"]) == ("GET", "/page")
    assert isinstance(record["exc_info"], LookupError)
    assert [record for record in caplog.records if record.name == "aiohttp.server"] == []


@pytest.mark.parametrize("analysed", [None, ValueError("instead")])
async def test_analyze_returns_the_exception_to_log_or_none(serve, logged, analysed):
    seen = []

    def analyze(context: RequestContext, exception: Exception) -> Exception | None:
        seen.append(exception)
        return analysed

    assert (await ask(serve, broken, analyze=analyze)).startswith(b"HTTP/1.1 500 ")
    assert [type(exception) for exception in seen] == [LookupError]
    assert [line["exc_info"] for line in logged if line["log_level"] == "error"] == ([analysed] if analysed else [])


async def test_with_debug_the_response_has_the_details_and_any_origin_can_read_them(serve):
    answer = (await ask(serve, broken, debug=True)).decode()
    assert "Access-Control-Allow-Origin: *" in answer
    assert "Content-Type: text/plain" in answer
    assert "LookupError in interceptor 'broken', stage enter: a secret" in answer
    assert 'raise LookupError("a secret")' in answer


async def test_after_commit_only_aiohttp_logs_the_exception_and_the_body_stays_incomplete(serve, logged, caplog):
    answer = await ask(serve, half_way)
    assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
    assert [line for line in logged if line["log_level"] == "error"] == []
    records = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert [str(record.exc_info[1]) for record in records] == ["a secret"]


def test_analyze_must_be_callable():
    with pytest.raises(TypeError, match="analyze is a function of the context and the exception, not 42"):
        uncaught_exception(analyze=42)


def test_it_has_an_error_stage_only():
    interceptor = uncaught_exception()
    assert isinstance(interceptor, Interceptor)
    assert (interceptor.name, interceptor.enter, interceptor.leave) == ("uncaught_exception", None, None)
