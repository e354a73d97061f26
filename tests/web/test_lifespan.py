from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import RequestContext, as_handler, before, interceptor_middleware, setup, start_event_stream

KEEP = "GET /s/ HTTP/1.1\nHost: x\n\n"


def test_setting_up_twice_is_setting_up_once():
    app = web.Application()
    setup(app)
    setup(app)
    assert len(app.on_shutdown) == len(app.on_response_prepare) == 1


async def test_setting_up_too_late_says_so(serve):
    app, sub = web.Application(), web.Application()
    app.add_subapp("/sub", sub)
    with pytest.raises(RuntimeError, match="before add_subapp"):
        setup(sub)
    await serve(app)
    with pytest.raises(RuntimeError, match="before the application starts"):
        setup(app)


@pytest.mark.parametrize("wrong", [None, "app", web.Application])
def test_only_an_application_can_be_set_up(wrong):
    with pytest.raises(TypeError, match=r"setup takes a web.Application, not"):
        setup(wrong)


@pytest.mark.parametrize("which", ["parent", "sub", "both"])
async def test_streams_of_a_sub_app_end_with_whoever_was_set_up(serve, which):
    async def ready(channel, context):
        await channel.wait_closed()

    sub, app = web.Application(), web.Application()
    sub.router.add_get("/", as_handler(start_event_stream(ready)))
    for each in {"parent": [app], "sub": [sub], "both": [app, sub]}[which]:
        setup(each)
    app.add_subapp("/s", sub)
    server = await serve(app)
    raw = await server.connect(KEEP)
    await raw.until(b"\r\n\r\n")
    await server.stop()
    assert await raw.reader.read() == b"0\r\n\r\n"
    await raw.close()


async def test_staged_headers_reach_a_websocket(serve, session):
    @before
    def stage(context: RequestContext) -> None:
        context.response_headers["X-Staged"] = "1"

    async def talk(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application(middlewares=[interceptor_middleware(stage)])
    app.router.add_get("/", talk)
    setup(app)
    server = await serve(app)
    async with session.ws_connect(server.url) as socket:
        assert socket._response.headers["X-Staged"] == "1"
        await socket.receive()


async def test_responses_without_a_chain_are_left_alone(serve):
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="x")

    app = web.Application()
    app.router.add_get("/", page)
    setup(app)
    answer = await (await serve(app)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert answer.endswith(b"\r\n\r\nx")
