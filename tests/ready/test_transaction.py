"""``transaction``: when it commits, when it rolls back, and what it refuses."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientPayloadError, web

from aiohttp_interceptors import ContextKey, RequestContext, event_stream, on_error
from aiohttp_interceptors.ready import transaction
from aiohttp_interceptors.testing import open_stream
from tests.ready.site import KINDS, STREAMS, application, plain, redirect, refused
from tests.waiting import until, within

CONNECTION = ContextKey[str]("connection")


class Database:
    """Records how its transactions ended."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.ended: list[str] = []
        self.errors: list[str] = []
        self.failing = failing

    @asynccontextmanager
    async def begin(self, context: RequestContext):
        try:
            yield "connection"
        except BaseException as error:
            self.ended.append("rolled back")
            self.errors.append(type(error).__name__)
            raise
        if self.failing is not None:
            raise self.failing
        self.ended.append("committed")

    def bracket(self, **options):
        return transaction(CONNECTION, self.begin, **options)


@pytest.fixture
def database() -> Database:
    return Database()


async def uses(request: web.Request) -> web.Response:
    return web.Response(text=RequestContext.of(request)[CONNECTION])


async def returned(request: web.Request) -> web.Response:
    return web.Response(status=409)


async def broken(request: web.Request) -> web.Response:
    raise LookupError


@pytest.mark.parametrize(
    ("handler", "status", "ended"),
    [
        (uses, 200, ["committed"]),
        (redirect, 302, ["committed"]),
        (returned, 409, ["rolled back"]),
        (refused, 403, ["rolled back"]),
        (broken, 500, ["rolled back"]),
    ],
)
async def test_the_status_decides(site, fetch, database, handler, status, ended):
    found, _, text = await fetch(await site(database.bracket(), handler=handler))
    assert (found, database.ended) == (status, ended)
    assert handler is not uses or text == "connection"


async def test_an_exception_is_raised_in_it_and_again_after_it(site, fetch, database, raised):
    await fetch(await site(database.bracket(), handler=broken))
    assert database.errors == ["LookupError"]
    assert [type(error) for error in raised()] == [LookupError]


async def test_an_error_that_was_answered_further_in_rolls_back_by_its_status(site, fetch, database):
    @on_error(LookupError)
    def answer(context: RequestContext, error: LookupError) -> None:
        context.response = web.Response(status=404)

    assert (await fetch(await site(database.bracket(), answer, handler=broken)))[0] == 404
    assert database.ended == ["rolled back"]


async def test_a_context_manager_cannot_suppress_an_exception(site, fetch, raised):
    @asynccontextmanager
    async def suppressing(context: RequestContext):
        try:
            yield "connection"
        except Exception:  # noqa: BLE001
            pass

    server = await site(transaction(CONNECTION, suppressing), handler=refused)
    assert (await fetch(server))[0] == 403
    server = await site(transaction(CONNECTION, suppressing), handler=broken)
    assert (await fetch(server))[0] == 500
    assert [type(error) for error in raised()] == [LookupError]


@pytest.mark.parametrize("handler", [plain, redirect])
async def test_a_commit_that_fails_is_an_error_response(site, fetch, raised, handler):
    error = ConnectionError("lost")
    assert (await fetch(await site(Database(error).bracket(), handler=handler)))[0] == 500
    assert raised() == [error]


async def test_a_commit_can_answer_with_a_response(site, fetch):
    database = Database(web.HTTPConflict())
    assert (await fetch(await site(database.bracket())))[0] == 409


async def test_a_cancellation_rolls_back(serve, place, database):
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.set()
        await asyncio.Event().wait()

    server = await serve(application(place, [database.bracket()], handler), handler_cancellation=True)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    await within(started.wait())
    await raw.close()
    await until(lambda: database.ended)
    assert (database.ended, database.errors) == (["rolled back"], ["CancelledError"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_is_refused_before_it_opens(site, fetch, database, raised, kind, method):
    status, headers, _ = await fetch(await site(database.bracket(), handler=KINDS[kind]()), method)
    assert (status, database.ended) == (500, ["rolled back"])
    assert headers["Content-Type"] != "text/event-stream"
    assert [type(error) for error in raised()] == [RuntimeError]
    assert "streams=True" in str(raised()[0])


async def test_a_websocket_is_refused(site, session, database, raised):
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    server = await site(database.bracket(), handler=handler)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    async with session.get(server.url, headers={**headers, "Sec-WebSocket-Key": "x" * 22 + "=="}) as response:
        assert response.status == 500
    assert database.ended == ["rolled back"]
    assert [type(error) for error in raised()] == [RuntimeError]


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_that_is_allowed_commits_when_it_has_closed(site, fetch, database, kind):
    assert (await fetch(await site(database.bracket(streams=True), handler=KINDS[kind]())))[0] == 200
    await until(lambda: database.ended)
    assert database.ended == ["committed"]


async def test_an_allowed_stream_holds_it_while_it_is_open(site, session, database):
    more = asyncio.Event()

    @event_stream
    async def handler(context):
        yield context[CONNECTION]
        await more.wait()

    server = await site(database.bracket(streams=True), handler=handler)
    async with open_stream(session, server.url) as stream:
        assert (await stream.next()).data == "connection"
        assert database.ended == []
        more.set()
        await until(lambda: database.ended)
    assert database.ended == ["committed"]


async def test_an_allowed_stream_whose_producer_raises_rolls_back(site, session, database):
    @event_stream
    async def handler(context):
        yield "one"
        raise LookupError

    async with session.get((await site(database.bracket(streams=True), handler=handler)).url) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    await until(lambda: database.ended)
    assert (database.ended, database.errors) == (["rolled back"], ["LookupError"])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("connection", lambda context: None), {}, "key is a ContextKey, .*, not 'connection'"),
        ((CONNECTION, "begin"), {}, "begin is a function, not 'begin'"),
        ((CONNECTION, lambda context: None), {"streams": 1}, "streams is True or False, not 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, message):
    with pytest.raises(TypeError, match=message):
        transaction(*arguments, **options)
