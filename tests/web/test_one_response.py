"""A request gets one response: whatever would follow it is dropped and logged, in every context of the request."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp_sse import sse_response
from multidict import CIMultiDict

from aiohttp_interceptors import (
    EventStreamResponse,
    Hub,
    Interceptor,
    RequestContext,
    as_handler,
    execute,
    intercept,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
)
from tests.waiting import TIMEOUT

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
KEPT = "GET / HTTP/1.1\nHost: x\n\n"


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] == "error"]


def attempts(logged) -> list[str]:
    return [line["attempted"] for line in errors(logged) if line["event"] == "change_after_commit_dropped"]


def application(handler, *interceptors, middlewares=(), **options) -> web.Application:
    app = web.Application(middlewares=[*middlewares, interceptor_middleware(*interceptors)])
    app.router.add_route("*", "/", handler)
    if options:
        setup(app, **options)
    return app


async def half_sent(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Own": "1"})
    await response.prepare(request)
    await response.write(b"half")
    return response


async def failing(request: web.Request) -> web.StreamResponse:
    await half_sent(request)
    raise LookupError("half-way")


class Streams:
    """Make a stream of each kind, and record which producers were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def channel(self, **options) -> Interceptor:
        async def ready(channel, context) -> None:
            self.called.append("channel")
            await channel.put("a secret")
            channel.close()

        return start_event_stream(ready, heartbeat=None, **options)

    def topic(self) -> Interceptor:
        hub = Hub()

        def ready(subscriber, context) -> None:
            self.called.append("topic")

        return start_topic_stream(hub, "a", heartbeat=None, stream_ready=ready)


@pytest.fixture(params=["channel", "topic"])
def stream(request):
    streams = Streams()
    interceptor = getattr(streams, request.param)()

    return interceptor, streams.called


class TestAStreamAfterACommittedResponse:
    async def test_is_dropped_in_an_error_stage_and_the_incomplete_body_stays_incomplete(self, serve, logged, stream):
        interceptor, called = stream
        left = []

        @on_error(LookupError)
        async def instead(context: RequestContext, error: LookupError) -> None:
            await execute(context, interceptor)

        outer = Interceptor("outer", leave=lambda context: left.append(context.committed))
        answer = await (await serve(application(failing, outer, instead))).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")  # no last chunk, and the connection is closed
        assert answer.count(b"HTTP/1.1") == 1
        assert called == []
        assert left == [True]
        assert attempts(logged) == ["open an event stream"]

    async def test_is_not_opened_after_an_interceptor_that_sent_a_response(self, serve, logged, stream):
        interceptor, called = stream

        async def forbid(context: RequestContext) -> None:
            response = web.Response(status=403, text="no")
            await response.prepare(context.request)
            await response.write_eof()

        entered, left = [], []
        around = Interceptor("around", leave=lambda context: left.append("around"))
        further = Interceptor("further", lambda context: entered.append("further"))
        handler = as_handler(around, Interceptor("forbid", forbid), interceptor, further)
        app = web.Application()
        app.router.add_get("/", handler)
        raw = await (await serve(app)).connect(KEPT + GET)
        async with asyncio.timeout(TIMEOUT):
            answer = await raw.reader.read()
        await raw.close()
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"200 OK" not in answer
        assert b"secret" not in answer
        assert answer.rstrip().endswith(b"no")
        assert (called, entered, left[0]) == ([], [], "around")
        assert attempts(logged) == []  # the stream's enter is not called

    async def test_does_not_count_towards_the_limit(self, serve, logged):
        streams = Streams()
        interceptor = streams.channel()

        async def twice(request: web.Request) -> web.StreamResponse:
            if "late" in request.query:
                await half_sent(request)
            return await as_handler(interceptor)(request)

        app = application(twice, max_streams=1)
        server = await serve(app)
        for _ in range(3):
            answer = await server.exchange(GET.replace("/ ", "/?late ", 1))
            assert answer.endswith(b"4\r\nhalf\r\n0\r\n\r\n")
        answer = await server.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"data: a secret" in answer
        assert streams.called == ["channel"]

    async def test_is_dropped_if_the_response_is_sent_while_the_stream_is_being_opened(self, serve, logged):
        sent = asyncio.Event()

        async def behind(context: RequestContext) -> str:
            context["task"] = asyncio.ensure_future(half_sent(context.request))
            await context["task"]
            sent.set()
            return "a"

        streams = Streams()
        hub = Hub()
        interceptor = start_topic_stream(hub, behind, heartbeat=None)
        answer = await (await serve(application(as_handler(interceptor), max_streams=1))).exchange(GET)
        assert sent.is_set()
        assert answer.endswith(b"4\r\nhalf\r\n0\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert len(attempts(logged)) == 1
        assert streams.called == []

    @pytest.mark.parametrize("way", ["sse_response", "prepare"])
    async def test_with_the_interface_of_aiohttp_sse_is_dropped_once_and_send_raises(self, serve, logged, way):
        raised = []

        async def twice(request: web.Request) -> web.StreamResponse:
            await half_sent(request)
            if way == "prepare":
                response = EventStreamResponse()
                await response.prepare(request)
                assert not response.is_connected()
                await response.wait()
                return response
            async with sse_response(request, response_cls=EventStreamResponse) as response:
                try:
                    await response.send("a secret")
                except ConnectionResetError as error:
                    raised.append(str(error))
            return response

        left = []
        leave = Interceptor("leave", leave=lambda context: left.append(context.committed))
        answer = await (await serve(application(twice, leave))).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n0\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert left == [True]
        assert attempts(logged) == ["prepare <EventStreamResponse OK not prepared>"]
        assert raised == (
            ["the event stream is not sent, because another response was committed before"] * (way != "prepare")
        )

    async def test_with_the_interface_of_aiohttp_sse_is_dropped_without_a_chain_too(self, serve, logged):
        async def twice(request: web.Request) -> web.StreamResponse:
            await half_sent(request)
            response = EventStreamResponse()
            await response.prepare(request)
            return response

        app = web.Application()
        app.router.add_get("/", twice)
        answer = await (await serve(app)).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n0\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert attempts(logged) == ["prepare <EventStreamResponse OK not prepared>"]


def retrying(*, clone: bool):
    """Make a middleware that calls the handler again after a failure, as for a database conflict."""

    @web.middleware
    async def retry(request: web.Request, handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except LookupError:
            return await handler(request.clone(headers={"X-Attempt": "2"}) if clone else request)

    return retry


class TestASecondAttempt:
    @pytest.mark.parametrize("clone", [False, True], ids=["the request", "a clone"])
    async def test_sees_the_committed_response_and_does_not_complete_its_body(self, serve, logged, clone):
        seen = []
        streams = Streams()
        second = streams.channel()

        async def handler(request: web.Request) -> web.StreamResponse:
            if len(seen) == 1:
                return await failing(request)
            return await as_handler(second)(request)

        look = Interceptor("look", lambda context: seen.append(context.committed))
        app = application(handler, look, middlewares=[retrying(clone=clone)])
        answer = await (await serve(app)).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert seen == [False, True]
        assert streams.called == []
        assert attempts(logged) == ["open an event stream"]

    async def test_drops_a_returned_response(self, serve, logged):
        attempt = []

        async def handler(request: web.Request) -> web.StreamResponse:
            attempt.append(1)
            return await failing(request) if len(attempt) == 1 else web.Response(text="second")

        answer = await (await serve(application(handler, middlewares=[retrying(clone=True)]))).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
        assert b"second" not in answer
        assert attempts(logged) == ["return <Response OK not prepared>"]

    async def test_is_answered_if_the_first_sent_nothing(self, serve, logged):
        attempt = []

        async def handler(request: web.Request) -> web.StreamResponse:
            attempt.append(1)
            if len(attempt) == 1:
                raise LookupError
            return web.Response(text="second")

        answer = await (await serve(application(handler, middlewares=[retrying(clone=True)]))).exchange(GET)
        assert answer.endswith(b"\r\n\r\nsecond")
        assert errors(logged) == []


class TestAnIncompleteBody:
    async def test_is_not_completed_when_an_error_stage_handles_the_exception(self, serve, logged):
        handled = []

        @on_error(LookupError)
        def swallow(context: RequestContext, error: LookupError) -> None:
            handled.append(context.committed)

        answer = await (await serve(application(failing, swallow))).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
        assert handled == [True]
        assert errors(logged) == []

    @pytest.mark.parametrize("known", [False, True], ids=["not set up", "set up"])
    async def test_is_not_completed_when_an_error_stage_attaches_a_response(self, serve, logged, known):
        @on_error(LookupError)
        def answer_500(context: RequestContext, error: LookupError) -> None:
            context.response = web.Response(status=500)

        app = application(failing, answer_500, **({"max_streams": 5} if known else {}))
        answer = await (await serve(app)).exchange(KEPT)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
        assert attempts(logged) == ["context.response = <Response Internal Server Error not prepared>"]

    async def test_with_a_content_length_closes_the_connection(self, serve, logged):
        """The client would read the next response as the rest of the body."""

        async def short(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "10"})
            await response.prepare(request)
            await response.write(b"half")
            raise web.HTTPConflict

        server = await serve(application(short, max_streams=5))
        answer = await server.exchange(KEPT + KEPT)  # it returns because the server closes the connection
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"\r\n\r\nhalf")

    @pytest.mark.parametrize("options", [{}, {"max_streams": 5}], ids=["not set up", "set up"])
    async def test_is_not_completed_when_its_handler_raises_an_http_exception(self, serve, logged, options):
        async def refuses(request: web.Request) -> web.StreamResponse:
            await half_sent(request)
            raise web.HTTPForbidden

        server = await serve(application(refuses, **options))
        answer = await server.exchange(KEPT + KEPT)
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")
        assert attempts(logged) == ["raise <HTTPForbidden Forbidden not prepared>"]

    async def test_an_http_exception_that_was_prepared_and_raised_is_complete(self, serve, logged):
        async def prepares(request: web.Request) -> web.StreamResponse:
            conflict = web.HTTPConflict(text="conflict")
            await conflict.prepare(request)
            raise conflict

        answer = await (await serve(application(prepares))).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 409 ")
        assert answer.endswith(b"\r\n\r\nconflict")
        assert attempts(logged) == []

    @pytest.mark.parametrize("options", [{}, {"max_streams": 5}], ids=["not set up", "set up"])
    async def test_a_head_response_with_a_content_length_is_complete(self, serve, options, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 10)

        async def send(request: web.Request) -> web.StreamResponse:
            response = web.FileResponse(tmp_path / "file")
            await response.prepare(request)
            return response

        server = await serve(application(send, **options))
        answer = await server.exchange(KEPT.replace("GET", "HEAD") + GET)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.endswith(b"\r\n\r\n" + b"x" * 10)

    async def test_a_body_is_completed_if_only_a_leave_stage_fails(self, serve, logged):
        @on_error(LookupError)
        def swallow(context: RequestContext, error: LookupError) -> None:
            pass

        def fail(context: RequestContext) -> None:
            raise LookupError

        answer = await (await serve(application(half_sent, swallow, Interceptor("fail", leave=fail)))).exchange(GET)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n0\r\n\r\n")


class TestAnInformationalResponse:
    @pytest.mark.parametrize("reset", [False, True], ids=["as it stands", "output_size put back"])
    async def test_100_of_an_expect_handler_does_not_commit(self, serve, logged, reset):
        async def expect(request: web.Request) -> None:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if reset:
                request.writer.output_size = 0

        seen = []

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text=await request.text(), headers={"X-Own": "1"})

        def late(context: RequestContext) -> None:
            seen.append(context.committed)
            context.response.headers["X-Late"] = "1"
            context.response_headers["X-Staged"] = "1"

        app = web.Application(middlewares=[interceptor_middleware(Interceptor("late", leave=late))])
        app.router.add_post("/", handler, expect_handler=expect)
        request = "POST / HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 4\nConnection: close\n\n"
        raw = await (await serve(app)).connect(request)
        assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.writer.write(b"body")
        async with asyncio.timeout(TIMEOUT):
            answer = await raw.reader.read()
        await raw.close()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"X-Late: 1\r\n" in answer
        assert b"X-Staged: 1\r\n" in answer
        assert answer.endswith(b"\r\n\r\nbody")
        assert seen == [False]
        assert errors(logged) == []

    @pytest.mark.parametrize("stream", [False, True], ids=["Response", "event stream"])
    async def test_103_of_a_handler_does_not_commit(self, serve, logged, stream):
        seen = []
        streams = Streams()
        then = as_handler(streams.channel())

        async def hints(request: web.Request) -> web.StreamResponse:
            await request.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
            seen.append(RequestContext.of(request).committed)
            return await then(request) if stream else web.Response(text="body")

        answer = await (await serve(application(hints))).exchange(GET)
        first, second, *_ = answer.split(b"\r\n\r\n", 2)
        assert first.startswith(b"HTTP/1.1 103")
        assert second.startswith(b"HTTP/1.1 200 OK")
        assert (b"data: a secret" if stream else b"body") in answer
        assert seen == [False]
        assert errors(logged) == []

    async def test_103_that_aiohttp_buffers_does_not_commit(self, serve, logged):
        seen = []

        async def hints(request: web.Request) -> web.StreamResponse:
            await request.writer.write_headers("HTTP/1.1 103 Early Hints", CIMultiDict({"Link": "</a.css>"}))
            seen.append(RequestContext.of(request).committed)
            return web.Response(text="body")

        answer = await (await serve(application(hints))).exchange(GET)
        assert answer.endswith(b"\r\n\r\nbody")
        assert seen == [False]
        assert errors(logged) == []

    @pytest.mark.parametrize("stream", [False, True], ids=["Response", "event stream"])
    async def test_103_that_aiohttp_sent_does_not_commit_after_setup(self, serve, logged, stream):
        seen = []
        then = as_handler(Streams().channel())

        async def hints(request: web.Request) -> web.StreamResponse:
            await request.writer.write_headers("HTTP/1.1 103 Early Hints", CIMultiDict({"Link": "</a.css>"}))
            request.writer.send_headers()
            seen.append(RequestContext.of(request).committed)
            return await then(request) if stream else web.Response(text="body")

        answer = await (await serve(application(hints, max_streams=5))).exchange(GET)
        first, second, _ = answer.split(b"\r\n\r\n", 2)
        assert first.startswith(b"HTTP/1.1 103")
        assert second.startswith(b"HTTP/1.1 200 OK")
        assert (b"data: a secret" if stream else b"body") in answer
        assert seen == [False]
        assert errors(logged) == []

    @pytest.mark.parametrize("options", [{}, {"max_streams": 5}], ids=["not set up", "set up"])
    @pytest.mark.parametrize(("method", "status"), [("GET", 204), ("GET", 304), ("HEAD", 200)])
    async def test_a_final_response_without_a_body_commits(self, serve, logged, method, status, options):
        async def handler(request: web.Request) -> web.StreamResponse:
            await web.StreamResponse(status=status).prepare(request)
            raise web.HTTPConflict

        request = f"{method} / HTTP/1.1\nHost: x\nConnection: close\n\n"
        answer = await (await serve(application(handler, **options))).exchange(request)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.count(b"HTTP/1.1") == 1
        assert attempts(logged) == ["raise <HTTPConflict Conflict not prepared>"]

    @pytest.mark.parametrize("options", [{}, {"max_streams": 5}], ids=["not set up", "set up"])
    async def test_101_commits(self, serve, logged, options):
        async def talk(request: web.Request) -> web.StreamResponse:
            await web.WebSocketResponse().prepare(request)
            raise web.HTTPBadRequest

        upgrade = "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        request = upgrade + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n"
        raw = await (await serve(application(talk, **options))).connect(request)
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        async with asyncio.timeout(TIMEOUT):
            assert await raw.reader.read(4) in {b"", b"\x88\x02\x03\xe8"}  # the end of the connection, or a close frame
        await raw.close()
        assert attempts(logged) == ["raise <HTTPBadRequest Bad Request not prepared>"]


class TestAPreparedResponse:
    """aiohttp buffers the headers of a ``web.Response`` until its body is written."""

    async def test_is_committed_at_once(self, serve, logged):
        seen = []

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.Response(text="body")
            seen.append(RequestContext.of(request).committed)
            await response.prepare(request)
            seen.append(RequestContext.of(request).committed)
            return response

        def late(context: RequestContext) -> None:
            context.response.headers["X-Late"] = "1"
            context.response = web.Response(text="another")

        answer = await (await serve(application(handler, Interceptor("late", leave=late)))).exchange(GET)
        assert answer.endswith(b"\r\n\r\nbody")
        assert b"X-Late" not in answer
        assert seen == [False, True]
        assert attempts(logged) == [
            "headers['X-Late'] = '1'",
            "context.response = <Response OK not prepared>",
        ]

    @pytest.mark.parametrize("way", ["return", "raise"])
    async def test_is_not_replaced_by_a_second_response_of_its_handler(self, serve, logged, way):
        async def handler(request: web.Request) -> web.StreamResponse:
            first = web.Response(text="first", headers={"X-First": "1"})
            await first.prepare(request)
            if way == "raise":
                raise web.HTTPConflict
            return web.Response(text="second")

        answer = await (await serve(application(handler, max_streams=5))).exchange(GET)
        assert answer.endswith(b"\r\n\r\nfirst")
        assert b"X-First: 1" in answer
        assert len(attempts(logged)) == 1

    async def test_of_a_leave_stage_replaces_one_that_is_only_attached(self, serve, logged):
        async def late(context: RequestContext) -> None:
            await half_sent(context.request)

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text="lost")

        answer = await (await serve(application(handler, Interceptor("late", leave=late)))).exchange(GET)
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n0\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert attempts(logged) == ["context.response = <Response OK not prepared>"]

    async def test_drops_changes_if_it_was_prepared_after_it_was_attached(self, serve, logged):
        async def early(context: RequestContext) -> None:
            context.response = web.Response(text="body")
            await context.response.prepare(context.request)

        def late(context: RequestContext) -> None:
            context.response.set_cookie("late", "1")

        app = web.Application()
        app.router.add_get("/", as_handler(Interceptor("late", leave=late), Interceptor("early", early)))
        answer = await (await serve(app)).exchange(GET)
        assert answer.endswith(b"\r\n\r\nbody")
        assert attempts(logged) == ["set_cookie('late', '1')"]

    async def test_can_be_changed_in_an_on_response_prepare_handler(self, serve, logged):
        seen = []

        async def hook(request: web.Request, response: web.StreamResponse) -> None:
            context = RequestContext.of(request)
            seen.append((context.committed, context.response is response))
            response.headers["X-Hook"] = "1"

        async def early(context: RequestContext) -> None:
            context.response = web.Response(text="body")
            await context.response.prepare(context.request)

        app = web.Application()
        app.on_response_prepare.append(hook)
        app.router.add_get("/", as_handler(Interceptor("early", early)))
        answer = await (await serve(app)).exchange(GET)
        assert b"X-Hook: 1" in answer
        assert seen == [(False, True)]
        assert errors(logged) == []


class TestACopyOfTheContext:
    async def test_is_committed_with_the_request(self, serve, logged):
        seen = []

        async def enter(context: RequestContext) -> None:
            await half_sent(context.request)
            seen.append(context.copy().committed)

        app = web.Application()
        app.router.add_get("/", intercept(Interceptor("enter", enter))(half_sent_never))
        await (await serve(app)).exchange(GET)
        assert seen == [True]

    @pytest.mark.parametrize("asked", ["nothing", "a queue"])
    @pytest.mark.parametrize("change", ["response", "header"])
    async def test_drops_changes_and_logs_the_stage_that_made_them(self, serve, logged, change, asked):
        async def enter(context: RequestContext) -> None:
            await half_sent(context.request)
            twin = context.copy()
            if asked == "a queue":
                twin.enqueue(Interceptor("queued", lambda _: None))
            if change == "response":
                twin.response = web.Response(status=499)
            else:
                twin.response_headers["X-Late"] = "1"

        app = web.Application()
        app.router.add_get("/", intercept(Interceptor("enter", enter))(half_sent))
        answer = await (await serve(app)).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 200")
        first = next(line for line in errors(logged) if line["event"] == "change_after_commit_dropped")
        assert (first["interceptor"], first["stage"]) == ("enter", "enter")


async def half_sent_never(request: web.Request) -> web.StreamResponse:
    return web.Response()


class TestAReturnedHTTPException:
    @pytest.mark.filterwarnings("default::DeprecationWarning")
    async def test_gives_the_deprecation_warning_of_aiohttp(self, serve):
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.HTTPConflict(text="conflict")

        server = await serve(application(handler))
        with pytest.warns(DeprecationWarning, match="returning HTTPException object is deprecated"):
            answer = await server.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 409")

    async def test_gives_no_warning_when_a_stage_attaches_it(self, serve):
        def enter(context: RequestContext) -> None:
            context.response = web.HTTPConflict(text="conflict")

        app = web.Application()
        app.router.add_get("/", as_handler(Interceptor("enter", enter)))
        assert (await (await serve(app)).exchange(GET)).startswith(b"HTTP/1.1 409")
