"""Requests without a connection: aiohttp's mocked request, and one with a minimal writer."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aiohttp_interceptors import Interceptor, RequestContext, as_handler, intercept, interceptor_middleware


class Writer:
    """The least that a request needs of a writer."""

    output_size = 0


async def plain(request: web.Request) -> web.StreamResponse:
    return web.Response(text="body")


async def own_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"body")
    return response


async def conflict(request: web.Request) -> web.StreamResponse:
    raise web.HTTPConflict


async def call(way: str, handler, *interceptors: Interceptor, **options) -> web.StreamResponse:
    request = make_mocked_request("GET", "/", **options)
    try:
        if way == "intercept":
            return await intercept(*interceptors)(handler)(request)
        if way == "as_handler":
            return await as_handler(*interceptors, handler)(request)
        return await interceptor_middleware(*interceptors)(request, handler)
    except web.HTTPException as exception:
        return exception


@pytest.mark.parametrize("options", [{}, {"writer": Writer()}], ids=["mocked writer", "minimal writer"])
@pytest.mark.parametrize("way", ["intercept", "as_handler", "interceptor_middleware"])
class TestAMockedRequest:
    @pytest.mark.parametrize(("handler", "status"), [(plain, 200), (conflict, 409)])
    async def test_gets_the_response_and_the_staged_headers(self, way, options, handler, status):
        seen = []

        def enter(context: RequestContext) -> None:
            seen.append(context.committed)
            context.response_headers["X-Staged"] = "1"

        def leave(context: RequestContext) -> None:
            seen.append(context.committed)
            context.response_headers.add("Vary", "Origin")
            context.response.headers["X-Own"] = "1"

        response = await call(way, handler, Interceptor("stage", enter, leave), **options)
        assert response.status == status
        assert response.headers["X-Staged"] == response.headers["X-Own"] == "1"
        assert response.headers["Vary"] == "Origin"
        assert seen == [False, False]

    async def test_can_be_refused_by_an_interceptor(self, way, options):
        def forbid(context: RequestContext) -> None:
            raise web.HTTPForbidden

        assert (await call(way, plain, Interceptor("forbid", forbid), **options)).status == 403

    async def test_raises_the_exception_of_its_handler(self, way, options):
        async def fail(request: web.Request) -> web.StreamResponse:
            raise LookupError("of the handler")

        with pytest.raises(LookupError, match="of the handler"):
            await call(way, fail, Interceptor("any", lambda context: None), **options)


@pytest.mark.parametrize("way", ["intercept", "as_handler", "interceptor_middleware"])
async def test_a_stream_prepared_on_a_mocked_request_is_returned(way):
    response = await call(way, own_stream, Interceptor("any", leave=lambda context: None))
    assert response.prepared
