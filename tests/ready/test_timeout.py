"""``timeout``: what is ended with 504, and what is not."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientPayloadError, web

from aiohttp_interceptors import (
    RequestContext,
    around,
    before,
    event_stream,
    intercept,
    interceptor_middleware,
    on_error,
)
from aiohttp_interceptors.ready import timeout
from aiohttp_interceptors.testing import open_stream
from tests.ready.site import KINDS, application
from tests.waiting import until, within

SHORT = 0.02  # seconds
LONG = 60.0


async def forever(*_: object) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def timers(monkeypatch):
    """Let timers of ``LONG`` seconds be triggered by hand: ``timers()`` calls those that are not cancelled."""
    pending = []
    call_later = asyncio.BaseEventLoop.call_later

    def later(loop, delay, function, *arguments, **options):
        handle = call_later(loop, delay, function, *arguments, **options)
        if delay == LONG:
            pending.append((handle, function))
        return handle

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", later)

    def trigger() -> list[bool]:
        alive = [not handle.cancelled() for handle, _ in pending]
        for handle, function in pending:
            if not handle.cancelled():
                function()
        return alive

    return trigger


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_in_time_is_answered(site, fetch, kind):
    status, _, _ = await fetch(await site(timeout(LONG), handler=KINDS[kind]()))
    assert status in (200, 302, 403)


async def test_a_handler_that_takes_too_long_is_cancelled(site, fetch, raised):
    ended = []

    async def handler(request: web.Request) -> web.Response:
        try:
            await forever()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    status, _, text = await fetch(await site(timeout(SHORT), handler=handler))
    assert (status, text) == (504, "The server did not answer in time.\n")
    assert (ended, raised()) == (["cancelled"], [])


async def test_an_interceptor_further_in_is_cancelled_and_one_further_out_leaves(site, fetch):
    trace = []

    @around
    async def outer(context: RequestContext):
        try:
            yield
        except web.HTTPException as response:
            trace.append(response.status)
            raise

    assert (await fetch(await site(outer, timeout(SHORT), before(forever))))[0] == 504
    assert trace == [504]


async def test_a_stream_that_does_not_open_is_cancelled(site, fetch):
    @event_stream(open_after=LONG)
    async def handler(request: web.Request):
        await forever()
        yield

    assert (await fetch(await site(timeout(SHORT), handler=handler)))[0] == 504


async def test_an_open_stream_is_not_ended(site, session, timers):
    more = asyncio.Event()

    @event_stream(heartbeat=None, stall_timeout=None)
    async def handler(request: web.Request):
        yield "one"
        await more.wait()
        yield "two"

    server = await site(timeout(LONG), handler=handler)
    async with open_stream(session, server.url) as stream:
        assert (await stream.next()).data == "one"
        assert timers() == [True]
        more.set()
        assert (await stream.next()).data == "two"


async def test_a_response_whose_headers_were_sent_is_not_ended_without_setup_either(serve, session, place, timers):
    more, sent = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        sent.set()
        await more.wait()
        await response.write(b"b")
        return response

    app = web.Application()
    if place == "middleware":
        app.middlewares.append(interceptor_middleware(timeout(LONG)))
    app.router.add_get("/", handler if place == "middleware" else intercept(timeout(LONG))(handler))
    async with session.get((await serve(app)).url) as response:
        await within(sent.wait())
        assert timers() == [True]
        more.set()
        assert await response.text() == "ab"


async def test_a_response_that_would_be_sent_in_the_same_moment_is_not_begun(site, session, timers):
    more, sent = asyncio.Event(), []

    async def handler(request: web.Request) -> web.StreamResponse:
        await more.wait()
        sent.append(True)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    server = await site(timeout(LONG), handler=handler)
    answer = asyncio.create_task(session.get(server.url))
    await until(lambda: more._waiters)
    more.set()  # the handler continues in the next iteration
    assert timers() == [True]
    async with await answer as response:
        assert response.status == 504
    assert sent == []


async def test_code_that_is_cancelled_and_sends_a_part_of_a_response_is_cut(serve, session, place):
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            await forever()
        finally:
            await response.prepare(request)

    errors = []

    @on_error(TimeoutError)
    def record(context: RequestContext, error: TimeoutError) -> None:
        errors.append(error)
        raise error

    server = await serve(application(place, [record, timeout(SHORT)], handler))
    async with session.get(server.url) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    assert [str(error) for error in errors] == [f"the response was not complete {SHORT} seconds after the request"]


async def test_the_timer_ends_with_the_request(site, fetch, timers):
    await fetch(await site(timeout(LONG)))
    assert timers() == [False]


async def test_a_timeout_of_the_handler_is_its_own(site, fetch):
    async def handler(request: web.Request) -> web.Response:
        async with asyncio.timeout(0):
            await forever()

    @on_error(TimeoutError)
    def answer(context: RequestContext, error: TimeoutError) -> None:
        context.response = web.Response(text="of the handler")

    assert (await fetch(await site(answer, timeout(LONG), handler=handler)))[2] == "of the handler"


async def test_a_handler_that_answers_when_it_is_cancelled_has_the_last_word(site, fetch):
    async def handler(request: web.Request) -> web.Response:
        try:
            await forever()
        except asyncio.CancelledError:
            return web.Response(text="late")

    status, _, text = await fetch(await site(timeout(SHORT), handler=handler))
    assert (status, text) == (200, "late")


async def test_a_disconnect_is_not_a_timeout(serve, place, logged, raised):
    started, ended = asyncio.Event(), []

    @around
    async def outer(context: RequestContext):
        try:
            yield
        except BaseException as error:
            ended.append(type(error))
            raise

    async def handler(request: web.Request) -> web.Response:
        started.set()
        await forever()

    server = await serve(application(place, [outer, timeout(LONG)], handler), handler_cancellation=True)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    await within(started.wait())
    await raw.close()
    await until(lambda: ended)
    assert (ended, raised()) == ([asyncio.CancelledError], [])


async def test_a_cancellation_in_the_same_moment_stays_one(site, timers):
    async def handler(request: web.Request) -> web.Response:
        asyncio.current_task().cancel()
        timers()
        await forever()

    server = await site(timeout(LONG), handler=handler)
    assert await server.exchange("GET / HTTP/1.1\nHost: x\n\n") == b""


@pytest.mark.parametrize(("seconds", "error"), [(0, ValueError), ("1", TypeError), (None, TypeError)])
def test_wrong_arguments_are_refused(seconds, error):
    with pytest.raises(error, match="seconds is"):
        timeout(seconds)
