"""How ``start_topic_stream`` answers a request, before the first record."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    Context,
    ContextKey,
    Event,
    Hub,
    RequestContext,
    before,
    execute,
    interceptor_middleware,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

USER = ContextKey[str]("user")

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


@pytest.fixture
def hub() -> Hub:
    return Hub()


@before
def authenticate(context: RequestContext) -> None:
    context[USER] = context.request.query.get("user")
    if context[USER] is None:
        raise web.HTTPUnauthorized


class TestTopics:
    @pytest.mark.parametrize("form", ["name", "list", "iterator", "function", "async function"])
    async def test_each_form_is_accepted(self, serve, hub, form):
        async def later(context: RequestContext) -> list[str]:
            await asyncio.sleep(0)
            return ["a", "b"]

        topics = {
            "name": "*",
            "list": ["a", "b"],
            "iterator": iter(["a", "b"]),
            "function": lambda context: {"a", "b"},
            "async function": later,
        }[form]
        server = await serve(application(hub, topics))
        for _ in range(2):  # an iterator is not used up by the first client
            listener = await listen(server)
            await until(lambda: hub.subscribers("a") == 1)
            for topic in "a.x", "a", "b.x", "b":
                await hub.publish(topic, topic)
            assert await listener.data(2) == ["a", "b"]
            await listener.close()
            await until(lambda: hub.subscribers("a") == 0)

    async def test_a_function_limits_them_to_what_an_earlier_interceptor_allows(self, serve, hub):
        """It limits both live and missed records."""
        await hub.publish("user.anna", "for Anna")
        await hub.publish("user.bert", "for Bert")
        app = application(hub, lambda context: f"user.{context[USER]}", authenticate, replay=10)
        server = await serve(app)
        refused = await listen(server)
        assert refused.status == 401
        await refused.close()
        for user, data in ("anna", "for Anna"), ("bert", "for Bert"):
            listener = await listen(server, f"/?user={user}")
            assert await listener.data(1) == [data]
            await listener.close()
        other = await listen(server, "/?user=bert", after=hub.history.id_of(0))
        await hub.publish("user.anna", "for Anna")
        await hub.publish("user.bert", "more for Bert")
        assert await other.data(2) == ["for Bert", "more for Bert"]
        await other.close()

    async def test_a_function_may_return_none_and_some_may_be_added_later(self, serve, hub):
        server = await serve(
            application(hub, lambda context: [], stream_ready=lambda subscriber, context: subscriber.add("a"))
        )
        listener = await listen(server)
        assert (await listener.frame()).id == hub.history.id_of(0)
        await hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_function_may_refuse_the_request_with_any_status(self, serve, hub, method, asynchronous):
        def refuse(context: RequestContext) -> str:
            raise web.HTTPForbidden(text="not yours")

        async def refuse_later(context: RequestContext) -> str:
            return refuse(context)

        server = await serve(application(hub, refuse_later if asynchronous else refuse))
        listener = await listen(server, method=method)
        assert listener.status == 403
        assert hub.statistics().subscribers == 0
        await listener.close()

    @pytest.mark.parametrize("wrong", ["", "a..b", "a.>.b", ["a b"], ["a", "b\n"], "x" * 256, "\udcff"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_an_invalid_topic_is_a_400_and_only_the_log_has_the_value(
        self, serve, hub, wrong, method, asynchronous, logged, raised
    ):
        """It was made of the request. A client must not be able to fill the log with tracebacks."""

        async def later(context: RequestContext) -> object:
            return wrong

        server = await serve(application(hub, later if asynchronous else lambda context: wrong))
        answer = await server.exchange(f"{method} / HTTP/1.1\nHost: x\nConnection: close\n\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == (b"" if method == "HEAD" else b"The topic of this request is not valid.\n")
        assert hub.statistics().subscribers == 0
        assert raised() == []
        (line,) = logged
        assert (line["event"], line["log_level"], line["status"]) == ("stream_refused", "warning", 400)
        assert repr(wrong if isinstance(wrong, str) else wrong[-1]) in line["why"]

    async def test_an_iterator_of_topics_that_raises_is_an_error_of_the_application(self, serve, hub, raised):
        def topics(context: RequestContext):
            yield "a"
            raise ValueError("a defect")

        listener = await listen(await serve(application(hub, topics)))
        assert listener.status == 500
        assert str(*raised()) == "a defect"
        await listener.close()

    @pytest.mark.parametrize("wrong", [None, 5, b"a", ["a", 5]])
    async def test_a_function_that_returns_no_topics_is_a_500(self, serve, hub, wrong):
        """The value is logged."""
        seen = []

        @web.middleware
        async def look(request, handler):
            try:
                return await handler(request)
            except TypeError as error:
                seen.append(str(error))
                raise web.HTTPInternalServerError from None

        server = await serve(application(hub, lambda context: wrong, middlewares=[look]))
        listener = await listen(server)
        assert listener.status == 500
        assert len(seen) == 1
        assert "topic" in seen[0]
        assert hub.statistics().subscribers == 0
        await listener.close()

    async def test_a_record_that_matches_two_of_them_is_sent_once(self, serve, hub):
        server = await serve(application(hub, ["a.b", "a.*", "a.>", ">", "a.b"], replay=10))
        await hub.publish("a.b", "old")
        listener = await listen(server)
        assert await listener.data(1) == ["old"]
        for data in "1", "2":
            await hub.publish("a.b", data)
        assert await listener.data(2) == ["1", "2"]
        await listener.close()
        listener = await listen(server, after=hub.history.id_of(1))
        assert await listener.data(2) == ["1", "2"]
        await listener.close()


class TestInitialFrame:
    async def test_it_has_an_id_and_retry(self, serve, hub):
        """It is sent with the head, although nothing was published."""
        await hub.publish("a", "before")
        listener = await listen(await serve(application(hub, "a", retry=3000)))
        assert await listener.frame() == Event(id=hub.history.id_of(1), retry=3000)
        await hub.publish("a", "x")
        assert await listener.frame() == Event("x", id=hub.history.id_of(2))
        await listener.close()

    async def test_without_prime_retry_is_sent_with_the_first_event(self, serve, hub):
        listener = await listen(await serve(application(hub, "a", retry=3000, prime=False, name="topics")))
        await until(lambda: hub.statistics().subscribers == 1)
        await hub.publish("a", "x")
        assert await listener.frame() == Event("x", id=hub.history.id_of(1), retry=3000)
        for data in "y", "z":  # sent with one write
            await hub.publish("a", data)
        assert await listener.frame() == Event("y", id=hub.history.id_of(2))
        assert await listener.frame() == Event("z", id=hub.history.id_of(3))
        await listener.close()

    @pytest.mark.parametrize("browser", [True, False])
    @pytest.mark.parametrize("prime", [None, True, False])
    async def test_by_default_only_browsers_get_it(self, serve, hub, browser, prime):
        """Other clients would report an event that was not published."""
        primed = browser if prime is None else prime
        options = {} if prime is None else {"prime": prime}
        server = await serve(application(hub, "a", retry=3000, **options))
        listener = await listen(server, browser=browser)
        await until(lambda: hub.statistics().subscribers == 1)
        await hub.publish("a", "x")
        await listener.event()
        frames = [b"retry: 3000\nid: %b\n\n" % hub.history.id_of(0).encode()] if primed else []
        frames.append(b"%bid: %b\ndata: x\n\n" % (b"" if primed else b"retry: 3000\n", hub.history.id_of(1).encode()))
        assert listener.body == b"".join(frames)
        await listener.close()
        returned = await listen(server, after=hub.history.id_of(0), browser=browser)
        assert await returned.data(1) == ["x"]
        assert returned.body.count(b"\n\n") == 1 + primed
        await returned.close()

    async def test_a_client_with_a_gap_gets_the_gap_event(self, serve, hub):
        server = await serve(application(hub, "a"))
        for browser in True, False:
            listener = await listen(server, after="strange-1", browser=browser)
            assert (await listener.event()).name == "gap"
            await listener.close()

    async def test_there_is_none_without_prime_and_without_retry(self, serve, hub):
        listener = await listen(await serve(application(hub, "a", prime=False)))
        await until(lambda: hub.statistics().subscribers == 1)
        await hub.publish("a", "x")
        await listener.frame()
        assert listener.body == b"id: %b\ndata: x\n\n" % hub.history.id_of(1).encode()
        await listener.close()

    async def test_a_resuming_client_gets_it_with_the_gap_if_there_is_one(self, serve, hub):
        server = await serve(application(hub, "a", retry=3000, gap_event="hole"))
        listener = await listen(server, after=hub.history.id_of(0))
        assert await listener.frame() == Event(id=hub.history.id_of(0), retry=3000)
        await listener.close()
        listener = await listen(server, after="x")
        frame = await listener.frame()
        assert (frame.name, frame.id, frame.retry) == ("hole", hub.history.id_of(0), 3000)
        assert json.loads(frame.data) == {"reason": "unknown", "after": "x", "first": None}
        await listener.close()

    @pytest.mark.parametrize("count", [1, 3, 100])
    async def test_it_precedes_replayed_records_and_has_the_id_of_their_start(self, serve, hub, count):
        """A client that disconnects before the first record gets the same records when it resumes."""
        for number in range(5):
            await hub.publish("a", str(number))
            await hub.publish("b", "other")
        wanted = ["0", "1", "2", "3", "4"][-count:]
        server = await serve(application(hub, "a", replay=count))
        listener = await listen(server)
        start_id = (await listener.frame()).id
        assert await listener.data(len(wanted)) == wanted
        await listener.close()
        listener = await listen(server, after=start_id)
        assert await listener.data(len(wanted)) == wanted
        await listener.close()


class TestClient:
    async def test_a_head_request_gets_headers_only(self, serve, hub):
        asked = []

        def topics(context: RequestContext) -> str:
            asked.append(context.request.method)
            return "a"

        app = application(hub, topics, stream_ready=lambda subscriber, context: asked.append("ready"))
        answer = await (await serve(app)).exchange("HEAD / HTTP/1.1\nHost: x\nConnection: close\n\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Type: text/event-stream" in head.split(b"\r\n")
        assert body == b""
        assert asked == ["HEAD"]
        assert hub.statistics().subscribers == hub.statistics().groups == len(app[STREAMS]) == 0

    async def test_an_http_1_0_client_gets_the_events_without_chunks(self, serve, hub):
        server = await serve(application(hub, "a"))
        old, new = await listen(server, version="1.0"), await listen(server)
        await until(lambda: hub.subscribers("a") == 2)
        for number in range(10):
            await hub.publish("a", f"line\n{number}")
        for listener in old, new:
            assert await listener.data(10) == [f"line\n{number}" for number in range(10)]
        assert old.body == new.body
        assert b"Transfer-Encoding" not in old.head
        assert b"Transfer-Encoding: chunked" in new.head
        await old.close()
        await new.close()

    async def test_an_idle_client_gets_heartbeats(self, serve, hub):
        listener = await listen(await serve(application(hub, "a", heartbeat=0.02, prime=False)))
        for _ in range(2):
            await listener.heartbeat()
        assert listener.body.replace(b":\n", b"") == b""
        await hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()

    async def test_strict_answers_406_to_a_client_that_accepts_no_event_stream(self, serve, hub):
        server = await serve(application(hub, "a", strict=True))
        answer = await server.exchange("GET / HTTP/1.1\nHost: x\nAccept: text/html\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 406 ")

    async def test_staged_headers_are_sent_and_leave_stages_run_after_the_stream(self, serve, hub):
        @before
        def stage(context: RequestContext) -> None:
            context.response_headers["X-Staged"] = "1"

        app = application(hub, "a", middlewares=[interceptor_middleware(stage)])
        listener = await listen(await serve(app))
        assert b"\r\nX-Staged: 1\r\n" in listener.head
        await listener.close()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("a", "a"), {}, TypeError, "hub is a Hub, not 'a'"),
        ((Hub, "a"), {}, TypeError, "hub is a Hub, not <class"),
        ((Hub(), None), {}, TypeError, "topics are a str, several of them, or a function of the context, not None"),
        ((Hub(), ["a", 5]), {}, TypeError, "a topic is a str, not 5"),
        ((Hub(), "a..b"), {}, ValueError, "a topic is tokens separated by single dots, not 'a..b'"),
        ((Hub(), lambda: "a"), {}, TypeError, "topics"),
        ((Hub(), "a"), {"name": 5}, TypeError, "name"),
    ],
)
def test_invalid_arguments_are_refused_at_once(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        start_topic_stream(*arguments, **options)


def test_an_interceptor_is_named_after_its_topics():
    def rooms(context):
        return "a"

    assert start_topic_stream(Hub(), ["a", "b.*"]).name == "start_topic_stream(a, b.*)"
    assert start_topic_stream(Hub(), rooms).name == "start_topic_stream(rooms)"
    assert start_topic_stream(Hub(), "a", name="feed").name == "feed"


async def test_a_chain_without_a_request_raises_type_error():
    with pytest.raises(TypeError, match="needs the RequestContext of an aiohttp request"):
        await execute(Context(), start_topic_stream(Hub(), "a"))
