"""Other orders of the middlewares than that of ``site.py``: what works, and what is an error."""

from __future__ import annotations

import aiohttp_cors
import aiohttp_remotes
import aiohttp_session
import pytest
from aiohttp import web

from aiohttp_interceptors import after, before, event_stream, intercept, interceptor_middleware, setup
from aiohttp_interceptors.ready import cors
from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import MARKS, ORIGIN, save_session
from tests.loops import event_loop_policy  # noqa: F401  # a fixture

pytestmark = MARKS


@pytest.fixture
def serve_app(serve, kind):
    """Serve an application as both servers configure it."""
    return lambda app: serve(app, handler_cancellation=kind == "TestServer")


@before
async def count(context) -> None:
    session = await aiohttp_session.get_session(context.request)
    session["count"] = session.get("count", 0) + 1


@event_stream
async def counted(request: web.Request):
    yield str((await aiohttp_session.get_session(request))["count"])


def with_sessions_inside(*stages) -> web.Application:
    """Return an application whose sessions are inside the interceptors of the application."""
    app = web.Application(middlewares=[interceptor_middleware(*stages)])
    setup(app)
    aiohttp_session.setup(app, aiohttp_session.SimpleCookieStorage())
    app.on_response_prepare.append(save_session)
    app.router.add_get("/", intercept(count)(counted))
    return app


async def test_stages_of_a_route_have_the_session_that_is_inside_those_of_the_application(serve_app, session):
    seen = []

    @after
    def look(context) -> None:
        seen.append(dict(context.request[aiohttp_session.SESSION_KEY]))

    server = await serve_app(with_sessions_inside(look))
    async with open_stream(session, server.url) as stream:
        assert "AIOHTTP_SESSION" in stream.response.cookies
        assert [event.data for event in await stream.rest()] == ["1"]
    assert seen == [{"count": 1}]  # a leave stage comes after what is inside


async def test_a_stage_of_the_application_has_no_session_that_is_inside(serve_app, session, raised):
    server = await serve_app(with_sessions_inside(count))
    async with session.get(server.url) as response:
        assert response.status == 500
    (error,) = raised()
    assert "Install aiohttp_session middleware" in str(error)


async def test_a_proxy_that_is_inside_is_unknown_to_stages_and_known_to_the_limits(serve_app, session):
    stages, keys = [], []

    @before
    def look(context) -> None:
        stages.append(context.request.remote)

    @event_stream
    async def address(request: web.Request):
        yield request.remote

    def key(request: web.Request) -> str:
        keys.append(request.remote)
        return request.remote

    app = web.Application(middlewares=[interceptor_middleware(look)])
    setup(app, max_streams_per_key=1, key=key)
    await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
    app.router.add_get("/", address)
    server = await serve_app(app)
    async with open_stream(session, server.url, headers={"X-Forwarded-For": "192.0.2.7"}) as stream:
        assert (await stream.next()).data == "192.0.2.7"
    assert (stages, set(keys)) == (["127.0.0.1"], {"192.0.2.7"})


async def test_a_request_with_the_cors_of_both_is_an_error(serve_app, session, raised):
    """aiohttp-cors asserts that no one else has set its headers."""
    app = web.Application(middlewares=[interceptor_middleware(cors([ORIGIN]))])
    setup(app)
    app.router.add_get("/", event_stream(hello))
    allowed = aiohttp_cors.setup(app, defaults={ORIGIN: aiohttp_cors.ResourceOptions()})
    for route in list(app.router.routes()):
        allowed.add(route)
    server = await serve_app(app)
    async with session.get(server.url, headers={"Origin": ORIGIN}) as response:
        assert response.status == 500
    (error,) = raised()
    assert isinstance(error, AssertionError)


async def hello(request: web.Request):
    yield "hello"
