"""Streams by generators: the status before the first event, the forms of handlers, threads, and what may be yielded."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from dataclasses import dataclass, fields
from functools import partial, wraps

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    ConflatingQueue,
    Drain,
    Event,
    Hub,
    RequestContext,
    SlidingQueue,
    around,
    before,
    default_encoder,
    event_stream,
    intercept,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
    topic_stream,
    wants_event_stream,
)
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.settings import ChannelSettings
from aiohttp_interceptors.web.topic_stream import TopicStreamOptions
from tests.waiting import until, within

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


def served(handler, method="*", **options):
    """Return an application with one handler."""
    app = web.Application()
    app.router.add_route(method, "/", handler)
    setup(app, **options)
    return app


async def status_and_body(session, method, url, **options):
    async with session.request(method, url, **options) as response:
        return response.status, await response.text()


class TestTheStatusBeforeTheFirstEvent:
    @pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
    @pytest.mark.parametrize("later", [False, True], ids=["at once", "after an await"])
    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_generator_may_refuse_the_request(self, serve, session, method, later, form):
        @event_stream(open_after=30)
        async def stream(context):
            if later:
                await asyncio.sleep(0.01)
            raise web.HTTPForbidden(text="not you")
            yield

        @event_stream(open_after=30)
        def in_thread(context):
            if later:
                time.sleep(0.01)
            raise web.HTTPForbidden(text="not you")
            yield

        server = await serve(served(stream if form == "async" else in_thread))
        status, body = await status_and_body(session, method, server.url)
        assert (status, body) == (403, "" if method == "HEAD" else "not you")

    async def test_a_bad_body_and_a_missing_key_are_what_they_are_in_a_plain_handler(self, serve, session, raised):
        """A malformed body is a 400, a KeyError a 500, and neither is an empty stream."""

        @event_stream
        async def stream(request: web.Request):
            try:
                body = await request.json()
            except ValueError:
                raise web.HTTPBadRequest(text="no JSON") from None
            yield body["prompt"]

        server = await serve(served(stream))
        assert await status_and_body(session, "POST", server.url, data="{") == (400, "no JSON")
        status, _ = await status_and_body(session, "POST", server.url, json={})
        assert status == 500
        assert [type(error) for error in raised()] == [KeyError]
        assert await status_and_body(session, "POST", server.url, json={"prompt": "x"}) == (200, "data: x\n\n")

    async def test_its_exception_is_that_of_the_stage_for_what_is_around(self, serve, session):
        """An @around generator and an error stage see it, and may answer it."""
        seen = []

        @around
        async def bracket(context):
            try:
                yield
            except LookupError as error:
                seen.append(error)
                raise

        @on_error(LookupError)
        def answer(context, error):
            context.response = web.Response(status=418)

        @event_stream
        async def stream(context):
            raise LookupError
            yield

        server = await serve(served(intercept(answer, bracket)(stream)))
        status, _ = await status_and_body(session, "GET", server.url)
        assert (status, [type(error) for error in seen]) == (418, [LookupError])

    @pytest.mark.parametrize("error", [GeneratorExit, asyncio.CancelledError], ids=lambda error: error.__name__)
    async def test_a_base_exception_is_an_error_too(self, serve, session, raised, error):
        @event_stream
        async def stream(context):
            raise error
            yield

        server = await serve(served(stream))
        status, _ = await status_and_body(session, "GET", server.url)
        assert status == 500
        assert [type(each) for each in raised()] == [RuntimeError]

    async def test_it_may_set_headers_and_cookies(self, serve, session):
        @event_stream
        async def stream(context: RequestContext):
            context.response_headers["X-Model"] = "small"
            context.response_headers.add("Set-Cookie", "seen=1")
            yield "x"

        server = await serve(served(stream))
        async with open_stream(session, server.url) as opened:
            assert opened.response.headers["X-Model"] == "small"
            assert opened.response.cookies["seen"].value == "1"
            assert [event.data async for event in opened] == ["x"]

    async def test_a_silent_generator_opens_after_a_while(self, serve, session):
        go_on = asyncio.Event()

        @event_stream(open_after=0.01)
        async def stream(context):
            await go_on.wait()
            yield "at last"

        server = await serve(served(stream))
        async with open_stream(session, server.url) as opened:
            assert opened.response.status == 200
            go_on.set()
            assert [event.data async for event in opened] == ["at last"]

    async def test_what_it_raises_after_that_cuts_the_body(self, serve, session, raised):
        go_on = asyncio.Event()

        @event_stream(open_after=0)
        async def stream(context):
            await go_on.wait()
            raise LookupError
            yield

        server = await serve(served(stream))
        raw = await server.connect(GET)
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        go_on.set()
        async with asyncio.timeout(10):
            assert not (await raw.reader.read()).endswith(b"0\r\n\r\n")
        await raw.close()
        assert [type(error) for error in raised()] == [LookupError]

    async def test_an_event_and_an_error_at_once_are_an_event_and_a_cut(self, serve, raised):
        @event_stream
        async def stream(context):
            yield "x"
            raise web.HTTPForbidden

        server = await serve(served(stream))
        answer = await server.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n")

    async def test_a_generator_without_events_is_an_empty_stream(self, serve, session):
        closes = []

        @event_stream(on_close=lambda context, reason: closes.append(reason))
        async def stream(context):
            return
            yield

        server = await serve(served(stream))
        assert await status_and_body(session, "GET", server.url) == (200, "")
        assert closes == [CloseReason.CLOSED]

    async def test_a_head_request_runs_it_up_to_its_first_event(self, serve, session):
        ran = []

        @event_stream
        async def stream(context):
            try:
                ran.append("start")
                yield "x"
                await asyncio.Event().wait()
            finally:
                ran.append("end")

        server = await serve(served(stream))
        async with session.head(server.url) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
        await until(lambda: ran == ["start", "end"])

    async def test_a_request_above_a_limit_does_not_start_it(self, serve, session):
        ran = []

        @event_stream
        async def stream(context):
            ran.append(context)
            yield "x"
            await asyncio.Event().wait()

        app = served(stream, max_streams=1)
        server = await serve(app)
        async with open_stream(session, server.url) as opened:
            await opened.next()
            status, _ = await status_and_body(session, "GET", server.url)
            assert (status, len(ran)) == (503, 1)

    async def test_one_that_is_refused_after_it_started_is_cancelled(self, serve, session):
        """Two requests for the last place start at the same time, and only one gets it."""
        started, ended, go_on = [], [], asyncio.Event()

        @event_stream(open_after=30)
        async def stream(context):
            started.append(context)
            try:
                await go_on.wait()
                yield "x"
                await asyncio.Event().wait()
            finally:
                ended.append(context)

        app = served(stream, max_streams=1)
        server = await serve(app)
        requests = [asyncio.create_task(session.get(server.url)) for _ in range(2)]
        await until(lambda: len(started) == 2)
        go_on.set()
        responses = [await within(request) for request in requests]
        assert sorted(response.status for response in responses) == [200, 503]
        await until(lambda: len(ended) == 1)
        for response in responses:
            response.close()
        await until(lambda: len(ended) == 2 and len(app[STREAMS]) == 0)

    async def test_a_client_that_leaves_before_the_first_event_ends_it(self, serve, handler_cancellation):
        """Without handler_cancellation the disconnect is found when the stream opens."""
        started, ended = asyncio.Event(), asyncio.Event()

        @event_stream(open_after=0.05)
        async def stream(context):
            started.set()
            try:
                await asyncio.Event().wait()
                yield
            finally:
                ended.set()

        app = served(stream)
        server = await serve(app, handler_cancellation=handler_cancellation)
        raw = await server.connect(GET)
        await within(started.wait())
        raw.reset()
        await within(ended.wait())
        await until(lambda: len(app[STREAMS]) == 0)

    async def test_a_server_that_stops_does_not_wait_for_the_first_event(self, serve):
        started, ended = asyncio.Event(), asyncio.Event()

        @event_stream(open_after=3600)
        async def stream(context):
            started.set()
            try:
                await asyncio.Event().wait()
                yield
            finally:
                ended.set()

        server = await serve(served(stream), shutdown_timeout=3600)
        raw = await server.connect(GET)
        await within(started.wait())
        stopping = asyncio.create_task(server.stop())
        assert (await raw.until(b"\r\n")).startswith(b"HTTP/1.1 503")
        await raw.close()
        await within(stopping)
        assert ended.is_set()

    async def test_a_timeout_around_its_yields_is_in_one_task(self, serve, session):
        """asyncio.timeout belongs to the task in which it began, also before the head is sent."""

        @event_stream
        async def stream(context):
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(0, "from the group"))
                yield "first"
                yield await task

        server = await serve(served(stream))
        async with open_stream(session, server.url) as opened:
            assert [event.data async for event in opened] == ["first", "from the group"]

    async def test_a_response_that_it_attaches_is_the_answer(self, serve, session):
        """The library's own way to refuse, in place of raising."""

        @event_stream
        async def stream(context):
            context.response = web.Response(status=403, text="not you")
            return
            yield

        server = await serve(served(stream))
        for method in ("GET", "POST"):
            assert await status_and_body(session, method, server.url) == (403, "not you")

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_head_request_runs_nothing_after_the_first_event(self, serve, session, form):
        ran = []

        @event_stream
        async def stream(context):
            yield "x"
            ran.append("more")
            yield "y"

        @event_stream
        def thread(context):
            yield "x"
            ran.append("more")
            yield "y"

        app = served(stream if form == "async" else thread)
        server = await serve(app)
        async with asyncio.timeout(4):  # less than a producer has to clean up
            async with session.head(server.url) as response:
                assert response.status == 200
        await server.stop()
        assert ran == []

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_lossy_queue_loses_nothing_while_the_headers_are_sent(self, serve, session, form):
        async def stream(context):
            for number in range(50):
                yield str(number)

        def thread(context):
            yield from map(str, range(50))

        decorate = event_stream(buffer=lambda: SlidingQueue(10))
        server = await serve(served(decorate(stream if form == "async" else thread)))
        async with open_stream(session, server.url) as opened:
            assert [event.data async for event in opened] == [str(number) for number in range(50)]

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_queue_that_refuses_the_first_event_is_an_error(self, serve, session, raised, form):
        """Its exception is raised at the yield, and nothing has opened the stream before."""

        async def stream(context):
            yield "not JSON"

        def thread(context):
            yield "not JSON"

        decorate = event_stream(buffer=lambda: ConflatingQueue(10, key=lambda event: json.loads(event.data)))
        server = await serve(served(decorate(stream if form == "async" else thread)))
        assert (await status_and_body(session, "GET", server.url))[0] == 500
        assert [type(error) for error in raised()] == [json.JSONDecodeError]

    async def test_an_error_after_a_refused_start_is_logged(self, serve, session, logged):
        """HEAD needs one event; what the generator's clean-up raises is told of."""

        @event_stream
        async def stream(context):
            try:
                yield "x"
            finally:
                raise LookupError

        server = await serve(served(stream))
        async with session.head(server.url) as response:
            assert response.status == 200
        await until(lambda: [line for line in logged if line["event"] == "stream_producer_failed"])

    async def test_a_stop_does_not_wait_for_a_thread_that_blocks_before_its_first_event(self, serve):
        started, go_on = threading.Event(), threading.Event()

        @event_stream(open_after=3600)
        def thread(context):
            started.set()
            go_on.wait(60)
            yield "x"

        server = await serve(served(thread, drain=Drain(timeout=0.1)), shutdown_timeout=3600)
        raw = await server.connect(GET)
        await until(started.is_set)
        stopping = asyncio.create_task(server.stop())
        assert (await raw.until(b"\r\n")).startswith(b"HTTP/1.1 503")
        await raw.close()
        await within(stopping, 4)
        go_on.set()

    @pytest.mark.parametrize("seconds", [-1, float("inf"), "1", None, True])
    def test_open_after_is_a_number_of_seconds(self, seconds):
        with pytest.raises((TypeError, ValueError), match="open_after is"):
            event_stream(open_after=seconds)


class TestForms:
    async def test_the_parameter_decides_between_request_and_context(self, serve, session):
        """Its annotation first, then its name."""

        async def annotated(anything: web.Request):
            yield anything.query["q"]

        async def quoted(anything: "web.Request"):  # noqa: UP037  # the annotation is text twice
            yield anything.query["q"]

        async def named(request):
            yield request.query["q"]

        async def of_context(request: RequestContext):
            yield request.request.query["q"]

        async def other(anything):
            yield anything.request.query["q"]

        def thread(request):
            yield request.query["q"]

        async def ready(channel, request):
            await channel.put(request.query["q"])
            channel.close()

        for function in (annotated, quoted, named, of_context, other, thread, ready):
            server = await serve(served(event_stream(function)))
            assert await status_and_body(session, "GET", f"{server.url}?q=1") == (200, "data: 1\n\n"), function

    async def test_methods_of_views_and_of_classes(self, serve, session):
        class View(web.View):
            @event_stream
            async def get(self):
                yield self.request.path

            @event_stream(heartbeat=5)
            async def post(self, context):
                yield context.request.path

            @event_stream
            def put(self):
                yield self.request.path

            @event_stream
            async def delete(self, channel):
                await channel.put(self.request.path)
                channel.close()

        class Handlers:
            def __init__(self, text):
                self.text = text

            @event_stream
            async def generator(self, request):
                yield f"{self.text} {request.path}"

            @event_stream
            async def ready(self, channel, context):
                await channel.put(f"{self.text} {context.request.path}")
                channel.close()

        app = web.Application()
        handlers = Handlers("hello")
        app.router.add_view("/view", View)
        app.router.add_get("/generator", handlers.generator)
        app.router.add_get("/ready", handlers.ready)
        app.router.add_view("/intercepted", intercept(on_error(KeyError)(lambda context, error: None))(View))
        server = await serve(app)
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert await status_and_body(session, method, f"{server.url}/view") == (200, "data: /view\n\n"), method
        assert await status_and_body(session, "GET", f"{server.url}/generator") == (200, "data: hello /generator\n\n")
        assert await status_and_body(session, "GET", f"{server.url}/ready") == (200, "data: hello /ready\n\n")
        status, body = await status_and_body(session, "GET", f"{server.url}/intercepted")
        assert (status, body) == (200, "data: /intercepted\n\n")

    async def test_other_parameters_keep_their_defaults(self, serve, session):
        async def with_default(request: web.Request, limit=10):
            yield f"{request.path} {limit}"

        async def context_first(context, request=None):
            yield f"{context.request.path} {request}"

        async def ready(channel, request, limit=10):
            await channel.put(f"{request.path} {limit}")
            channel.close()

        class View(web.View):
            @event_stream
            async def get(self, limit=10):
                yield f"{self.request.path} {limit}"

        texts = {with_default: "/ 10", context_first: "/ None", ready: "/ 10"}
        for function, text in texts.items():
            server = await serve(served(event_stream(function)))
            assert await status_and_body(session, "GET", server.url) == (200, f"data: {text}\n\n"), function
        assert await status_and_body(session, "GET", (await serve(served(View))).url) == (200, "data: / 10\n\n")

    async def test_wrapped_functions_objects_and_static_methods(self, serve, session):
        def traced(function):
            @wraps(function)
            def wrapper(*args):
                return function(*args)

            return wrapper

        class Callable:
            async def __call__(self, request):
                yield request.path

        class Handlers:
            @event_stream
            @staticmethod
            async def static(request):
                yield request.path

            @event_stream
            @classmethod
            async def of_class(cls, request):
                yield f"{cls.__name__} {request.path}"

            @event_stream
            @traced
            async def method(self, request):
                yield request.path

        @event_stream
        @traced
        async def function(request):
            yield request.path

        handlers = {
            function: "/", event_stream(Callable()): "/", Handlers.static: "/", Handlers().static: "/",
            Handlers.of_class: "Handlers /", Handlers().method: "/",
        }  # fmt: skip
        for handler, text in handlers.items():
            server = await serve(served(handler))
            assert await status_and_body(session, "GET", server.url) == (200, f"data: {text}\n\n"), handler

    @pytest.mark.parametrize("arguments", ["context, user", "channel, context", ""])
    def test_a_function_that_takes_something_else_is_refused_at_decoration(self, arguments):
        namespace = {}
        exec(f"async def generate({arguments}):\n    yield", namespace)
        with pytest.raises(TypeError, match=r"a generator of events is called as generate\(context\)"):
            event_stream(namespace["generate"])

    def test_a_forgotten_yield_and_a_misspelt_option_are_said(self):
        async def forgotten(request):
            return web.Response()

        with pytest.raises(TypeError, match=r"the function of event_stream\(\) is called as stream_ready") as caught:
            event_stream(forgotten)
        assert caught.value.__notes__ == ["If it should be a generator of one argument, it has no yield."]
        with pytest.raises(TypeError, match=r"event_stream\(\) has no option 'as_jsn'"):
            event_stream(as_jsn=list)

    async def test_a_stream_ready_that_returns_a_generator_is_an_error(self, serve, raised):
        async def generate():
            yield "x"

        server = await serve(served(event_stream(lambda channel, context: generate())))
        assert not (await server.exchange(GET)).endswith(b"0\r\n\r\n")
        assert "decorate a generator function with @event_stream" in str(raised()[0])

    async def test_a_method_that_raises_is_answered_like_a_function(self, serve, session):
        class View(web.View):
            @event_stream
            async def get(self):
                raise web.HTTPNotFound
                yield

        app = web.Application()
        app.router.add_view("/", View)
        assert (await status_and_body(session, "GET", (await serve(app)).url))[0] == 404

    async def test_route_tables_take_them(self, serve, session):
        routes, hub = web.RouteTableDef(), Hub()

        @routes.get("/generator")
        @event_stream
        async def generator(request):
            yield "generator"

        @routes.get("/thread")
        @event_stream(heartbeat=None)
        def thread(request):
            yield "thread"

        routes.get("/topic")(topic_stream(hub, "news", replay=1))
        app = web.Application()
        app.add_routes(routes)
        setup(app, hub)
        server = await serve(app)
        for name in ("generator", "thread"):
            assert await status_and_body(session, "GET", f"{server.url}/{name}") == (200, f"data: {name}\n\n")
        await hub.publish("news", "topic")
        async with open_stream(session, f"{server.url}/topic") as opened:
            assert (await opened.next()).data == "topic"

    def test_a_handler_keeps_name_doc_and_module(self):
        @event_stream
        async def ticks(request):
            """Count."""
            yield

        assert (ticks.__name__, ticks.__doc__, ticks.__module__) == ("ticks", "Count.", __name__)
        assert inspect.iscoroutinefunction(ticks)
        assert event_stream(name="other")(ticks.__wrapped__).__name__ == "other"

    def test_one_decorator_decorates_several_functions(self):
        decorate = event_stream(name="shared")

        async def one(request):
            yield

        assert [decorate(one).__name__, decorate(one).__name__] == ["shared", "shared"]

    async def test_a_partial_of_a_generator_function(self, serve, session):
        async def greet(word, request):
            yield f"{word} {request.path}"

        server = await serve(served(event_stream(partial(greet, "hello"))))
        assert await status_and_body(session, "GET", server.url) == (200, "data: hello /\n\n")

    def test_the_options_have_the_same_defaults_everywhere(self):
        def defaults(function):
            parameters = inspect.signature(function).parameters.values()
            return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

        settings = {field.name: field.default for field in fields(ChannelSettings)}
        options = defaults(start_event_stream)
        del options["name"]
        assert options == settings
        assert set(TopicStreamOptions.__annotations__) == set(defaults(start_topic_stream))


class TestTheEndOfAStream:
    """Inside the generator it is a cancellation, as in a coroutine, whether it waits for something or for room."""

    async def test_a_task_group_around_the_yields_ends_quietly(self, serve, raised):
        ended, blocked = asyncio.Event(), []

        @event_stream(buffer=1)
        async def stream(context):
            try:
                async with asyncio.TaskGroup():
                    while True:
                        blocked.append(None)
                        yield "x" * 1_000_000
            finally:
                ended.set()

        server = await serve(served(stream))
        raw = await server.connect(GET)
        await until(lambda: len(blocked) > 2)
        raw.reset()
        await within(ended.wait())
        await server.stop()
        assert raised() == []

    async def test_a_timeout_may_expire_while_a_yield_waits_for_room(self, serve):
        caught = asyncio.Event()

        @event_stream(buffer=1)
        async def stream(context):
            try:
                async with asyncio.timeout(0.05):
                    while True:
                        yield "x" * 1_000_000
            except TimeoutError:
                caught.set()

        server = await serve(served(stream))
        raw = await server.connect(GET)
        await within(caught.wait())
        raw.reset()

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_one_that_yields_only_wrong_values_ends_with_its_stream(self, serve, form):
        tries, ended = [], []

        async def stream(context):
            yield "x"
            try:
                while True:
                    try:
                        yield object()
                    except TypeError:
                        tries.append(None)
            finally:
                ended.append(None)

        def thread(context):
            yield "x"
            try:
                while True:
                    try:
                        yield object()
                    except TypeError:
                        tries.append(None)
                        time.sleep(0.001)
            finally:
                ended.append(None)

        server = await serve(served(event_stream(stream if form == "async" else thread)))
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await until(lambda: len(tries) > 2)
        raw.reset()
        await until(lambda: ended)


class TestThreads:
    async def test_a_plain_generator_runs_in_a_thread_of_its_own(self, serve, session):
        """It may block, and other streams go on."""
        blocked = threading.Event()

        @event_stream
        def thread(context):
            yield threading.current_thread().name
            blocked.wait(30)
            yield "released"

        server = await serve(served(thread))
        async with open_stream(session, server.url) as opened, open_stream(session, server.url) as other:
            names = {(await opened.next()).data, (await other.next()).data}
            assert len(names) == 1
            assert threading.current_thread().name not in names
            blocked.set()
            assert [event.data async for event in opened] == ["released"]

    async def test_it_is_closed_in_its_thread_when_the_client_leaves(self, serve):
        """At its next yield: a thread cannot be interrupted. on_close and the end of the chain wait for it."""
        yielded, go_on, ended, closes = threading.Event(), threading.Event(), [], []

        @event_stream(on_close=lambda context, reason: closes.append(reason))
        def thread(context):
            try:
                yield "x"
                yielded.set()
                go_on.wait(30)
                yield "y"
                ended.append("not reached")
            finally:
                ended.append(threading.current_thread() is threading.main_thread())

        app = served(thread)
        server = await serve(app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await until(yielded.is_set)
        raw.reset()
        await until(lambda: closes == [CloseReason.CLIENT_LEFT])
        assert len(app[STREAMS]) == 1
        go_on.set()
        await until(lambda: len(app[STREAMS]) == 0)
        assert ended == [False]

    async def test_back_pressure_reaches_it(self, serve, session):
        puts, parked = [], threading.Event()

        @event_stream(buffer=1)
        def thread(context):
            for number in range(100):
                puts.append(number)
                yield "x" * 10_000
            parked.set()

        server = await serve(served(thread))
        async with open_stream(session, server.url) as opened:
            assert len([event async for event in opened]) == 100
        assert parked.is_set()

    async def test_its_exception_is_that_of_the_stream(self, serve, raised):
        @event_stream
        def thread(context):
            yield "x"
            raise LookupError

        server = await serve(served(thread))
        assert (await server.exchange(GET)).endswith(b"9\r\ndata: x\n\n\r\n")
        assert [type(error) for error in raised()] == [LookupError]

    async def test_context_variables_reach_it(self, serve, session):
        from contextvars import ContextVar  # noqa: PLC0415

        user = ContextVar("user", default="anonymous")

        @around
        async def bind(context):
            context.bind(user, "ada")
            yield

        @event_stream
        def thread(context):
            yield user.get()

        server = await serve(served(intercept(bind)(thread)))
        assert await status_and_body(session, "GET", server.url) == (200, "data: ada\n\n")


@dataclass
class Token:
    text: str


@dataclass
class Done:
    __event_name__ = "done"
    tokens: int


class TestValues:
    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_values_are_encoded(self, serve, session, form):
        async def generator(context):
            for value in values:
                yield value

        def thread(context):
            yield from values

        values = [Token("a"), Done(2), {"b": 1}, [1], 2, "text", Event("data", "name")]
        server = await serve(served(event_stream(generator if form == "async" else thread)))
        async with open_stream(session, server.url) as opened:
            events = [(event.name, event.data) async for event in opened]
        assert events == [
            ("Token", '{"text":"a"}'),
            ("done", '{"tokens":2}'),
            (None, '{"b":1}'),
            (None, "[1]"),
            (None, "2"),
            (None, "text"),
            ("name", "data"),
        ]

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_wrong_value_is_raised_at_the_yield(self, serve, session, form):
        """The generator may handle it and go on."""
        caught = []

        async def generator(context):
            try:
                yield object()
            except TypeError as error:
                caught.append(str(error))
            yield "goes on"

        def thread(context):
            try:
                yield object()
            except TypeError as error:
                caught.append(str(error))
            yield "goes on"

        server = await serve(served(event_stream(generator if form == "async" else thread)))
        assert await status_and_body(session, "GET", server.url) == (200, "data: goes on\n\n")
        assert caught[0].startswith("an event is made of an Event, a str, a dataclass")

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_a_wrong_value_that_nothing_handles_is_an_error(self, serve, session, raised, form):
        async def generator(context):
            yield object()

        def thread(context):
            yield object()

        server = await serve(served(event_stream(generator if form == "async" else thread)))
        status, _ = await status_and_body(session, "GET", server.url)
        assert status == 500
        (error,) = raised()
        frames = []
        traceback = error.__traceback__
        while traceback is not None:
            frames.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        assert frames[-1] in ("generator", "thread", "default_encoder")
        assert {"generator", "thread"} & set(frames)

    async def test_an_encoder_of_ones_own(self, serve, session):
        @event_stream(encoder=lambda value: Event(f"<{value}>", "number"))
        async def stream(context):
            yield 1
            yield Event("as it is")

        server = await serve(served(stream))
        async with open_stream(session, server.url) as opened:
            events = [(event.name, event.data) async for event in opened]
        assert events == [("number", "<1>"), (None, "as it is")]

    async def test_an_encoder_that_returns_something_else(self, serve, session, raised):
        @event_stream(encoder=lambda value: 5)
        async def stream(context):
            yield "x"

        server = await serve(served(stream))
        assert (await status_and_body(session, "GET", server.url))[0] == 500
        assert "returned 5 for 'x'; it returns an Event or a str" in str(raised()[0])

    async def test_a_hub_takes_values_too(self, serve, session):
        hub = Hub()
        app = web.Application()
        app.router.add_get("/", topic_stream(hub, "news", snapshot=lambda context: [Token("state")]))
        setup(app, hub)
        server = await serve(app)
        async with open_stream(session, server.url) as opened:
            assert (await opened.next()).data == '{"text":"state"}'
            await hub.publish("news", Token("a"))
            hub.publish_threadsafe("news", {"b": 1})
            event = await opened.next()
            assert (event.name, event.data) == ("Token", '{"text":"a"}')
            assert (await opened.next()).data == '{"b":1}'
        with pytest.raises(TypeError, match="an event is made of"):
            await hub.publish("news", object())

    async def test_a_hub_with_an_encoder_of_its_own(self):
        hub = Hub(encoder=lambda value: f"<{value}>")
        await hub.publish("a", 1)
        await hub.publish("a", "text")
        assert [record.event.data for record in hub.history.read(0, ["a"]).records] == ["<1>", "<text>"]

    @pytest.mark.parametrize(
        "make", [lambda encoder: Hub(encoder=encoder), lambda encoder: event_stream(encoder=encoder)]
    )
    def test_an_encoder_is_a_function(self, make):
        with pytest.raises(TypeError, match="encoder is a plain function of a value, not 5"):
            make(5)


class TestJSONOrAStream:
    """One route answers with JSON or with a stream, as the client asks."""

    @pytest.fixture(params=["async", "thread", "view"])
    async def url(self, request, serve):
        def answer(values):
            return {"text": "".join(value.text for value in values)}

        @event_stream(as_json=answer)
        async def generator(request):
            if request.query:
                raise web.HTTPForbidden
            yield Token("a")
            yield Token("b")

        @event_stream(as_json=answer)
        def thread(request):
            if request.query:
                raise web.HTTPForbidden
            yield Token("a")
            yield Token("b")

        class View(web.View):
            @event_stream(as_json=answer)
            async def get(self):
                if self.request.query:
                    raise web.HTTPForbidden
                yield Token("a")
                yield Token("b")

            post = get

        handler = {"async": generator, "thread": thread, "view": View}[request.param]
        return (await serve(served(handler))).url

    STREAM = 'event: Token\ndata: {"text":"a"}\n\nevent: Token\ndata: {"text":"b"}\n\n'
    JSON = '{"text":"ab"}'

    @pytest.mark.parametrize(
        ("body", "accept", "streams"),
        [
            ({"stream": True}, None, True),
            ({"stream": True}, "application/json", True),
            ({"stream": False}, "text/event-stream", False),
            ({}, None, False),
            ({}, "text/event-stream", True),
            ({}, "application/json, text/event-stream", True),
            ({}, "application/json, text/event-stream;q=0.5", False),
            ({}, "text/event-stream;q=0", False),
            ({}, "*/*", False),
            ({"stream": "yes"}, "text/event-stream", True),
            ([True], "text/event-stream", True),
            (None, "text/event-stream", True),
            (None, None, False),
        ],
    )
    async def test_the_body_decides_and_then_the_accept_header(self, session, url, body, accept, streams):
        headers = {} if accept is None else {"Accept": accept}
        async with session.request("GET" if body is None else "POST", url, json=body, headers=headers) as response:
            expected = ("text/event-stream", self.STREAM) if streams else ("application/json", self.JSON)
            assert (response.content_type, await response.text()) == expected

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    async def test_an_error_is_the_same_in_both(self, session, url, accept):
        status, _ = await status_and_body(session, "GET", f"{url}?x=1", headers={"Accept": accept})
        assert status == 403

    async def test_a_body_that_was_read_before_decides_too(self, serve, session):
        @before
        async def authenticate(context):
            await context.request.json()

        @event_stream(as_json=list)
        async def stream(request):
            assert await wants_event_stream(request) == (await request.json())["stream"]
            yield 1

        server = await serve(served(intercept(authenticate)(stream)))
        assert await status_and_body(session, "POST", server.url, json={"stream": True}) == (200, "data: 1\n\n")
        assert await status_and_body(session, "POST", server.url, json={"stream": False}) == (200, "[1]")

    async def test_a_client_that_sends_no_body_gets_408(self, serve):
        @event_stream(as_json=list, stall_timeout=0.05)
        async def stream(request):
            yield 1

        server = await serve(served(stream))
        head = "POST / HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 5\n\n"
        raw = await server.connect(head)
        assert (await raw.until(b"\r\n")).startswith(b"HTTP/1.1 408")
        await raw.close()

    @pytest.mark.parametrize("content_type", ["application/json; charset=bogus", "application/json"])
    async def test_a_strange_body_is_no_error_of_the_route(self, session, url, content_type):
        headers = {"Accept": "text/event-stream", "Content-Type": content_type}
        body = "[" * 100_000 if content_type == "application/json" else "{}"
        assert await status_and_body(session, "POST", url, data=body, headers=headers) == (200, self.STREAM)

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    async def test_caches_are_told_that_the_accept_header_decides(self, session, url, accept):
        async with session.get(url, headers={"Accept": accept}) as response:
            assert response.headers["Vary"] == "Accept"

    @pytest.mark.parametrize("form", ["async", "thread"])
    async def test_an_endless_answer_ends_with_the_server(self, serve, form):
        ran, ended = [], []

        async def stream(request):
            try:
                while True:
                    ran.append(None)
                    yield 1
                    await asyncio.sleep(0)
            finally:
                ended.append(None)

        def thread(request):
            try:
                while True:
                    ran.append(None)
                    yield 1
                    time.sleep(0.001)
            finally:
                ended.append(None)

        server = await serve(served(event_stream(as_json=len)(stream if form == "async" else thread)))
        raw = await server.connect(GET)
        await until(lambda: len(ran) > 2)
        stopping = asyncio.create_task(server.stop())
        assert (await raw.until(b"\r\n")).startswith(b"HTTP/1.1 503")
        await raw.close()
        await within(stopping)
        assert ended

    async def test_the_function_may_be_async(self, serve, session):
        async def answer(values):
            return {"count": len(values)}

        @event_stream(as_json=answer)
        async def stream(request):
            yield 1

        assert await status_and_body(session, "GET", (await serve(served(stream))).url) == (200, '{"count":1}')

    async def test_a_body_that_is_no_json_is_the_handlers_business(self, session, url):
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        assert await status_and_body(session, "POST", url, data="{", headers=headers) == (200, self.STREAM)

    async def test_the_function_may_return_a_response(self, serve, session):
        @event_stream(as_json=lambda values: web.Response(status=202, text=str(values)))
        async def stream(request):
            yield 1

        assert await status_and_body(session, "GET", (await serve(served(stream))).url) == (202, "[1]")

    async def test_a_handler_may_ask_itself(self, serve, session):
        async def handler(request):
            return web.Response(text=str(await wants_event_stream(request)))

        server = await serve(served(handler))
        assert await status_and_body(session, "POST", server.url, json={"stream": True}) == (200, "True")

    def test_a_stream_ready_has_no_values(self):
        with pytest.raises(TypeError, match="as_json is for a generator"):
            event_stream(as_json=list)(lambda channel, context: None)


async def test_a_stream_inside_a_middleware_chain_opens_with_its_own_headers(serve, session):
    """The generator stages headers in the context that the application's interceptors have."""

    @around
    async def outer(context):
        context.response_headers["X-Outer"] = "1"
        yield

    @event_stream
    async def stream(context):
        context.response_headers["X-Inner"] = "2"
        yield default_encoder("x")

    app = web.Application(middlewares=[interceptor_middleware(outer)])
    app.router.add_get("/", stream)
    async with open_stream(session, (await serve(app)).url) as opened:
        assert (opened.response.headers["X-Outer"], opened.response.headers["X-Inner"]) == ("1", "2")
