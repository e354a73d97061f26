"""The test utilities: chains without a server, producers without a client, and streams over a real connection."""

import asyncio
import inspect

import pytest
import structlog
from aiohttp import ClientPayloadError, ClientSession, web

from aiohttp_interceptors import (
    Context,
    Event,
    Interceptor,
    RequestContext,
    ResponseCommitted,
    after,
    as_handler,
    before,
    intercept,
    start_event_stream,
)
from aiohttp_interceptors.testing import (
    captured_logs,
    collect_events,
    open_stream,
    request_context,
    run_chain,
)

SHORT = 0.05  # seconds; a timeout that is meant to expire


# run_chain and request_context


async def test_one_interceptor_runs():
    @before
    def greet(context):
        context["greeting"] = f"hello {context['name']}"

    context = Context({"name": "you"})
    assert await run_chain(context, greet) is context
    assert context["greeting"] == "hello you"


async def test_several_interceptors_run_in_order_and_in_reverse():
    ran = []
    links = [
        Interceptor(x, lambda _, x=x: ran.append(f"enter {x}"), lambda _, x=x: ran.append(f"leave {x}")) for x in "ab"
    ]
    await run_chain(Context(), *links)
    assert ran == ["enter a", "enter b", "leave b", "leave a"]


async def test_an_empty_chain_returns_its_context():
    context = request_context()
    assert await run_chain(context) is context


async def test_the_context_of_the_last_stage_is_returned():
    other = Context()
    assert await run_chain(Context(), before(lambda _: other)) is other


async def test_an_unhandled_exception_is_raised():
    @before
    def broken(context):
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await run_chain(Context(), broken)


async def test_no_interceptor_is_entered_after_a_response_is_attached():
    @before
    def refuse(context):
        context.response = web.Response(status=403)

    @before
    def never(context):
        pytest.fail("was entered")

    context = await run_chain(request_context(), refuse, never)
    assert context.response.status == 403


async def test_a_raised_http_exception_is_attached():
    @before
    def refuse(context):
        raise web.HTTPNotFound

    @after
    def note(context):
        context["left with"] = context.response.status

    context = await run_chain(request_context(), note, refuse)
    assert context.response.status == 404
    assert context["left with"] == 404


async def test_a_stage_cannot_return_a_context_of_another_class():
    with pytest.raises(TypeError, match="a stage returns None or a RequestContext"):
        await run_chain(request_context(), before(lambda _: Context()))


async def test_an_intercepted_handler_shares_the_context_of_the_chain_that_calls_it():
    @intercept(before(lambda context: context.update(seen="inside")))
    async def page(request):
        return web.Response(text="page")

    @before
    async def call(context):
        context.response = await page(context.request)

    context = await run_chain(request_context(), call)
    assert context["seen"] == "inside"
    assert context.response.text == "page"


async def test_a_request_has_defaults():
    context = request_context()
    assert isinstance(context, RequestContext)
    assert (context.request.method, context.request.path) == ("GET", "/")
    assert dict(context.request.headers) == {}
    assert dict(context.request.match_info) == {}
    assert context.response is None
    assert not context.committed


async def test_a_request_has_the_given_values():
    context = request_context("POST", "/rooms/7?last=3", headers={"Last-Event-ID": "41"}, match_info={"room": "7"})
    assert (context.request.method, context.request.path) == ("POST", "/rooms/7")
    assert context.request.query["last"] == "3"
    assert context.request.headers["last-event-id"] == "41"
    assert context.request.match_info["room"] == "7"


async def test_headers_can_be_staged():
    @before
    def cors(context):
        context.response_headers["Access-Control-Allow-Origin"] = "*"

    context = await run_chain(request_context(), cors)
    assert context.response_headers["access-control-allow-origin"] == "*"


async def test_two_contexts_share_nothing():
    first, second = request_context(), request_context()
    assert first.request is not second.request
    assert first.execution_id != second.execution_id


# collect_events


async def test_events_are_collected_until_the_channel_closes():
    async def ready(channel, context):
        for number in range(20):
            assert await channel.put(str(number))
        channel.close()

    assert [event.data for event in await collect_events(ready)] == [str(number) for number in range(20)]


async def test_a_producer_can_be_a_plain_function():
    def ready(channel, context):
        channel.put_nowait(Event("a", "n"))
        channel.close()

    assert await collect_events(ready) == [Event("a", "n")]


async def test_a_plain_producer_can_pass_its_channel_to_a_task():
    async def produce(channel):
        await asyncio.sleep(0)
        await channel.put("a")
        channel.close()

    tasks = []
    assert await collect_events(lambda channel, context: tasks.append(asyncio.create_task(produce(channel)))) == [
        Event("a")
    ]


async def test_the_producer_gets_the_given_context():
    async def ready(channel, context):
        await channel.put(context.request.match_info["room"])
        channel.close()

    assert await collect_events(ready, request_context(match_info={"room": "7"})) == [Event("7")]


async def test_the_producer_gets_a_context_by_default():
    def ready(channel, context):
        channel.put_nowait(context.request.path)
        channel.close()

    assert await collect_events(ready) == [Event("/")]


async def test_a_producer_without_events_gives_an_empty_list():
    assert await collect_events(lambda channel, context: channel.close()) == []


@pytest.mark.parametrize("limit", [1, 3, 10, 25])
async def test_after_the_limit_the_client_disconnects(limit):
    left = []

    async def ready(channel, context):
        while await channel.put("tick"):
            pass
        left.append(await channel.wait_closed())

    assert await collect_events(ready, limit=limit) == [Event("tick")] * limit
    assert left == ["client_left"]


async def test_after_the_limit_a_producer_that_waits_for_anything_but_its_channel_is_cancelled():
    cleaned_up = []

    async def ready(channel, context):
        try:
            await channel.put("a")
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(True)

    assert await collect_events(ready, limit=1) == [Event("a")]
    assert cleaned_up == [True]


async def test_a_limit_that_is_not_reached_has_no_effect():
    def ready(channel, context):
        channel.put_nowait("a")
        channel.close()

    assert await collect_events(ready, limit=5) == [Event("a")]


async def test_the_limit_can_be_reached_as_the_channel_closes():
    def ready(channel, context):
        channel.put_nowait("a")
        channel.put_nowait("b")
        channel.close()

    assert await collect_events(ready, limit=2) == [Event("a"), Event("b")]


async def test_the_buffer_has_the_given_size():
    def ready(channel, context):
        for _ in range(3):
            channel.put_nowait("a")

    with pytest.raises(asyncio.QueueFull):
        await collect_events(ready, buffer=2)


@pytest.mark.parametrize("count", [10, 11])
async def test_the_buffer_has_the_size_of_a_streams_by_default(count):
    def ready(channel, context):
        for _ in range(count):
            channel.put_nowait("a")
        channel.close()

    if count > 10:
        with pytest.raises(asyncio.QueueFull):
            await collect_events(ready)
    else:
        assert len(await collect_events(ready)) == count


async def test_an_exception_of_a_producer_is_raised():
    async def ready(channel, context):
        await channel.put("a")
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await collect_events(ready)


async def test_an_exception_of_a_plain_producer_is_raised():
    def ready(channel, context):
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await collect_events(ready)


async def test_an_exception_of_a_producer_after_the_client_disconnected_is_raised():
    async def ready(channel, context):
        try:
            await channel.put("a")
            await asyncio.Event().wait()
        finally:
            raise LookupError("while cleaning up")

    with pytest.raises(LookupError, match="while cleaning up"):
        await collect_events(ready, limit=1)


async def test_an_exception_of_a_producer_after_it_closed_is_raised():
    async def ready(channel, context):
        channel.close()
        await asyncio.sleep(0)
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await collect_events(ready)


async def test_the_cancellation_of_a_producer_is_raised():
    async def ready(channel, context):
        await channel.put("a")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await collect_events(ready)


async def test_a_value_that_is_not_an_event_is_a_type_error():
    async def ready(channel, context):
        await channel.put(7)

    with pytest.raises(TypeError, match="put takes an Event or a str"):
        await collect_events(ready)


async def test_a_producer_that_never_returns_times_out():
    cleaned_up = []

    async def ready(channel, context):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    with pytest.raises(TimeoutError):
        await collect_events(ready, timeout=SHORT)
    assert cleaned_up == [True]


async def test_a_producer_that_does_not_close_times_out():
    """Returning does not end a stream."""
    with pytest.raises(TimeoutError):
        await collect_events(lambda channel, context: channel.put_nowait("a"), timeout=SHORT)


async def test_a_producer_that_does_not_return_after_it_closed_times_out():
    async def ready(channel, context):
        channel.close()
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await collect_events(ready, timeout=SHORT)


async def test_cancelling_the_collection_cancels_the_producer():
    began, ended = asyncio.Event(), []

    async def ready(channel, context):
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    collecting = asyncio.create_task(collect_events(ready))
    await began.wait()
    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    assert ended == [True]


# open_stream


async def three(channel, context):
    """Put three events, and close."""
    for number in ("1", "2", "3"):
        await channel.put(Event(number, "count", f"id-{number}"))
    channel.close()


async def silent(channel, context):
    """Put nothing until the stream ends."""
    await channel.wait_closed()


def application(producer, **options):
    app = web.Application()
    app.router.add_route("*", "/", as_handler(start_event_stream(producer, **options)))
    return app


async def test_a_stream_is_read_to_its_end(aiohttp_client):
    client = await aiohttp_client(application(three))
    async with open_stream(client, "/") as stream:
        assert stream.response.status == 200
        assert stream.response.content_type == "text/event-stream"
        assert await stream.next() == Event("1", "count", "id-1")
        assert await stream.next() == Event("2", "count", "id-2")
        assert await stream.next() == Event("3", "count", "id-3")
        with pytest.raises(StopAsyncIteration):
            await stream.next()
        with pytest.raises(StopAsyncIteration):  # also when asked again
            await stream.next_frame()


async def test_stop_async_iteration_is_raised_out_of_the_block_unchanged(aiohttp_client):
    client = await aiohttp_client(application(lambda channel, context: channel.close()))
    with pytest.raises(StopAsyncIteration):
        async with open_stream(client, "/") as stream:
            await stream.next()


async def test_a_stream_can_be_iterated_or_read_at_once(aiohttp_client):
    client = await aiohttp_client(application(three))
    async with open_stream(client, "/") as stream:
        assert [event.data async for event in stream] == ["1", "2", "3"]
        assert await stream.rest() == []
    async with open_stream(client, "/") as stream:
        await stream.next()
        assert [event.data for event in await stream.rest()] == ["2", "3"]


async def test_raw_has_every_byte(aiohttp_client):
    client = await aiohttp_client(application(three))
    async with open_stream(client, "/") as stream:
        assert stream.raw == b""
        await stream.rest()
        assert stream.raw == b"".join(b"event: count\ndata: %d\nid: id-%d\n\n" % (n, n) for n in (1, 2, 3))


async def test_the_last_event_id_is_tracked(aiohttp_client):
    client = await aiohttp_client(application(three))
    async with open_stream(client, "/") as stream:
        assert stream.last_event_id == ""
        await stream.rest()
        assert stream.last_event_id == "id-3"


@pytest.mark.parametrize(("last_event_id", "sent"), [("41", "41"), ("", ""), (None, None)])
async def test_a_last_event_id_is_sent_as_a_browser_sends_it(aiohttp_client, last_event_id, sent):
    async def ready(channel, context):
        await channel.put(Event.json(context.request.headers.get("Last-Event-ID")))
        channel.close()

    client = await aiohttp_client(application(ready))
    async with open_stream(client, "/", last_event_id=last_event_id) as stream:
        assert await stream.next() == Event.json(sent)


async def test_headers_and_method_are_sent(aiohttp_client):
    async def ready(channel, context):
        headers = context.request.headers
        await channel.put(f"{context.request.method} {headers['Accept']} {headers.get('Authorization')}")
        channel.close()

    client = await aiohttp_client(application(ready))
    async with open_stream(client, "/") as stream:
        assert (await stream.next()).data == "GET text/event-stream None"
    async with open_stream(client, "/", headers={"Accept": "*/*", "Authorization": "me"}, method="POST") as stream:
        assert (await stream.next()).data == "POST */* me"


async def test_heartbeats_are_neither_frames_nor_events(aiohttp_client):
    proceed = asyncio.Event()

    async def ready(channel, context):
        await proceed.wait()
        await channel.put("a")
        channel.close()

    client = await aiohttp_client(application(ready, heartbeat=0.01))
    async with open_stream(client, "/") as stream:
        await stream.next_heartbeat()
        await stream.next_heartbeat()
        assert stream.heartbeats >= 2
        proceed.set()
        assert await stream.next_frame() == Event("a")


async def test_a_frame_without_data_is_not_an_event(aiohttp_client):
    async def ready(channel, context):
        await channel.put(Event(id="7"))
        await channel.put(Event(comment="not for pages"))
        await channel.put("a")
        channel.close()

    client = await aiohttp_client(application(ready))
    async with open_stream(client, "/") as stream:
        assert await stream.next() == Event("a")
        assert stream.last_event_id == "7"
    async with open_stream(client, "/") as stream:
        assert await stream.next_frame() == Event(id="7")
        assert await stream.next_frame() == Event(comment="not for pages")


async def test_a_silent_stream_times_out(aiohttp_client):
    client = await aiohttp_client(application(silent, heartbeat=None))
    async with open_stream(client, "/", timeout=SHORT) as stream:
        with pytest.raises(TimeoutError):
            await stream.next_frame()
        with pytest.raises(TimeoutError):
            await stream.next()


async def test_heartbeats_do_not_extend_the_timeout(aiohttp_client):
    client = await aiohttp_client(application(silent, heartbeat=SHORT / 5))
    async with open_stream(client, "/", timeout=SHORT) as stream:
        with pytest.raises(TimeoutError):
            await stream.next()


async def test_a_server_that_does_not_respond_times_out(aiohttp_client):
    release = asyncio.Event()

    async def handler(request):
        await release.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    client = await aiohttp_client(app)
    with pytest.raises(TimeoutError):
        async with open_stream(client, "/", timeout=SHORT):
            pytest.fail("was answered")
    release.set()


async def test_at_the_end_of_the_block_the_client_disconnects(aiohttp_client):
    ended = asyncio.get_running_loop().create_future()

    async def ready(channel, context):
        await channel.put("a")
        ended.set_result(await channel.wait_closed())

    client = await aiohttp_client(application(ready))
    async with open_stream(client, "/") as stream:
        await stream.next()
    async with asyncio.timeout(10):
        assert await ended == "client_left"


async def test_a_refusal_is_a_response(aiohttp_client):
    client = await aiohttp_client(web.Application())
    async with open_stream(client, "/nowhere") as stream:
        assert stream.response.status == 404


async def test_a_client_session_can_be_used(aiohttp_server):
    server = await aiohttp_server(application(three))
    async with ClientSession() as session, open_stream(session, str(server.make_url("/"))) as stream:
        assert len(await stream.rest()) == 3


# captured_logs


def test_logs_are_captured_with_their_context_variables():
    with captured_logs() as lines, structlog.contextvars.bound_contextvars(execution_id="e-1"):
        structlog.get_logger("any").warning("something", reason="none")
    assert lines == [{"event": "something", "reason": "none", "execution_id": "e-1", "log_level": "warning"}]


def test_lines_logged_outside_the_block_are_not_captured(capsys):
    with captured_logs() as lines:
        pass
    structlog.get_logger("any").warning("outside")
    assert lines == []
    assert "outside" in capsys.readouterr().out


async def test_lines_of_the_library_are_captured(aiohttp_client):
    async def ready(channel, context):
        context.response.headers["X-Late"] = "1"
        channel.close()

    client = await aiohttp_client(application(ready))
    with captured_logs() as lines:
        async with open_stream(client, "/") as stream:
            assert await stream.rest() == []
    dropped = next(line for line in lines if line["event"] == "change_after_commit_dropped")
    assert dropped["log_level"] == "error"
    assert dropped["attempted"] == "headers['X-Late'] = '1'"
    assert isinstance(dropped["exc_info"], ResponseCommitted)


async def test_an_incomplete_body_raises_client_payload_error(aiohttp_client):
    async def ready(channel, context):
        raise LookupError("lost")

    client = await aiohttp_client(application(ready))
    async with open_stream(client, "/") as stream:
        with pytest.raises(ClientPayloadError):
            await stream.rest()


def test_every_function_has_a_docstring():
    for function in (captured_logs, collect_events, open_stream, request_context, run_chain):
        assert inspect.getdoc(function)
