"""An open stream of a Hub: what it is told, why it ends, and what is known of it."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason, Event, Hub, RequestContext, Subscriber
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


class TransportListener:
    """Streams of a Hub, who was there, and why they ended."""

    def __init__(self, topics="a", ready=None, *, held: bool = False, **options: object) -> None:
        self.hub = options.pop("hub", None) or Hub()
        self.opened: list[tuple[Subscriber, RequestContext]] = []
        self.reasons: list[CloseReason] = []

        def stream_ready(subscriber: Subscriber, context: RequestContext) -> object:
            self.opened.append((subscriber, context))
            return None if ready is None else ready(subscriber, context)

        options.setdefault("on_close", lambda context, reason: self.reasons.append(reason))
        self.app = application(self.hub, topics, stream_ready=None if held else stream_ready, **options)
        self.stream = None

    async def until_open(self, streams: int = 1) -> None:
        await until(lambda: self.hub.statistics().subscribers == streams and self.hub.statistics().behind == 0)
        self.stream = next(iter(self.app[STREAMS]))

    async def until_over(self) -> None:
        await until(lambda: self.hub.statistics().subscribers == len(self.app[STREAMS]) == 0)


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] in {"error", "critical", "warning"}]


@pytest.mark.parametrize("held", [False, True], ids=["head first", "head and first frame"])
class TestTheEnd:
    async def test_of_a_client_that_leaves_is_told_once(self, serve, logged, held, handler_cancellation):
        watched = TransportListener(held=held)
        listener = await listen(await serve(watched.app, handler_cancellation=handler_cancellation))
        await watched.until_open()
        await listener.close()
        await watched.until_over()
        assert watched.reasons == [CloseReason.CLIENT_LEFT]
        assert watched.stream.statistics().reason is CloseReason.CLIENT_LEFT
        assert watched.stream.subscriber.topics == frozenset()
        assert errors(logged) == []

    @pytest.mark.parametrize("reason", [CloseReason.KICKED, CloseReason.CLOSED])
    async def test_by_the_application_is_clean_and_comes_after_what_was_published(self, serve, logged, held, reason):
        watched = TransportListener(held=held)
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        last = await watched.hub.publish("a", "you have to leave")
        watched.stream.end(reason)
        await watched.hub.publish("a", "too late")
        assert [event.data for event in await listener.rest()] == ["you have to leave"]
        assert (listener.complete, listener.last_event_id) == (True, last)
        await watched.until_over()
        assert watched.reasons == [reason]
        await listener.close()

    async def test_of_its_age_is_clean_and_the_client_goes_on_where_it_was(self, serve, logged, held):
        watched = TransportListener(max_age=0.05, held=held)
        server = await serve(watched.app)
        listener = await listen(server)
        await listener.rest()
        assert listener.complete
        assert watched.reasons == [CloseReason.EXPIRED]
        await watched.hub.publish("a", "meanwhile")
        again = await listen(server, after=listener.last_event_id)
        assert await again.data(1) == ["meanwhile"]
        await listener.close()
        await again.close()

    async def test_because_select_raises_is_an_error_of_that_stream_alone(self, serve, logged, raised, held):
        def select(context, record) -> bool:
            if context.request.query.get("bad"):
                raise LookupError("no such user")
            return True

        watched = TransportListener(select=select, held=held)
        server = await serve(watched.app)
        good, bad = await listen(server), await listen(server, "/?bad=1")
        await watched.until_open(2)
        await watched.hub.publish("a", "x")
        assert await good.data(1) == ["x"]
        assert await bad.rest() == []
        assert watched.reasons == [CloseReason.ERROR]
        assert not bad.complete
        await until(lambda: [str(error) for error in raised()] == ["no such user"])
        await bad.close()
        bad = await listen(server, "/?bad=1", after=watched.hub.log.id_of(0))  # now while it catches up
        assert await bad.rest() == []
        assert watched.reasons == [CloseReason.ERROR] * 2
        await until(lambda: len(raised()) == 2)
        assert errors(logged) == []
        await bad.close()
        await good.close()


async def test_of_a_stream_in_the_middle_of_its_snapshot_nothing_follows(serve, logged):
    asked = asyncio.Event()

    async def state(context):
        yield "1"
        yield "2"
        asked.set()
        watched.opened[0][0].close()
        yield "3"

    watched = TransportListener(snapshot=state)
    listener = await listen(await serve(watched.app))
    await within(asked.wait())
    assert [event.data for event in await listener.rest()] == ["1"]
    assert listener.complete
    await watched.until_over()
    assert watched.reasons == [CloseReason.CLOSED]
    assert errors(logged) == []
    await listener.close()


class TestStreamReady:
    @pytest.mark.parametrize("when", ["at once", "later"])
    async def test_that_raises_ends_the_stream_and_is_raised_to_aiohttp(self, serve, logged, raised, when):
        def fail(subscriber, context) -> None:
            raise LookupError("no")

        async def fail_later(subscriber, context) -> None:
            await asyncio.sleep(0)
            fail(subscriber, context)

        watched = TransportListener(ready=fail if when == "at once" else fail_later)
        listener = await listen(await serve(watched.app))
        assert await listener.rest() == []
        assert not listener.complete
        assert watched.reasons == [CloseReason.ERROR]
        assert [str(error) for error in raised()] == ["no"]
        assert errors(logged) == []
        await listener.close()
        await watched.until_over()

    async def test_may_go_on_and_is_cancelled_with_the_stream(self, serve, logged, handler_cancellation):
        ended = asyncio.Event()

        async def ready(subscriber, context) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        watched = TransportListener(ready=ready)
        listener = await listen(await serve(watched.app, handler_cancellation=handler_cancellation))
        await watched.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()
        await within(ended.wait())
        await watched.until_over()
        assert watched.reasons == [CloseReason.CLIENT_LEFT]
        assert errors(logged) == []

    @pytest.mark.parametrize("how", ["at once", "later", "in a thread", "by its context"])
    @pytest.mark.parametrize("snapshot", [None, lambda context: ["state"]])
    async def test_may_close_its_stream_which_ends_after_what_was_published(self, serve, logged, how, snapshot):
        async def later(subscriber, context) -> None:
            await watched.hub.publish("a", "x")
            if how == "in a thread":
                await asyncio.to_thread(subscriber.close)
            elif how == "by its context":
                assert context.stream.subscriber == subscriber
                assert len({context.stream.subscriber, subscriber}) == 1
                context.stream.subscriber.close()
            else:
                subscriber.close()
            await watched.hub.publish("a", "too late")

        ready = (lambda subscriber, context: subscriber.close()) if how == "at once" else later
        watched = TransportListener(ready=ready, snapshot=snapshot, prime=False)
        listener = await listen(await serve(watched.app))
        expected = [] if how == "at once" else ["x"] if snapshot is None else ["state", "x"]
        assert [event.data for event in await listener.rest()] == expected
        assert listener.complete
        await watched.until_over()
        assert watched.reasons == [CloseReason.CLOSED]
        subscriber = watched.opened[0][0]
        subscriber.close()
        subscriber.add("b")
        await asyncio.to_thread(subscriber.remove, "b")
        assert subscriber.topics == frozenset()
        assert errors(logged) == []
        await listener.close()

    async def test_that_removes_its_last_topic_leaves_a_stream_that_waits_for_another(self, serve, logged):
        watched = TransportListener(ready=lambda subscriber, context: subscriber.remove("a"))
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        watched.opened[0][0].add("b")
        await watched.hub.publish("a", "not this")
        await watched.hub.publish("b", "this")
        assert await listener.data(1) == ["this"]
        await listener.close()

    async def test_shows_what_an_application_needs_and_nothing_else(self, serve, logged):
        watched = TransportListener()
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        names = {name for name in dir(watched.opened[0][0]) if not name.startswith("_")}
        assert names == {"topics", "add", "remove", "close"}
        await listener.close()

    async def test_may_return_and_the_stream_goes_on(self, serve, logged):
        async def ready(subscriber, context) -> None:
            await asyncio.sleep(0)

        watched = TransportListener(ready=ready)
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        await watched.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()

    async def test_announces_who_is_here_and_on_close_who_left_each_once(self, serve, logged, handler_cancellation):
        """peer bug 43: joined when the stream is registered, so that it hears of it itself; left exactly once."""

        def joined(subscriber, context) -> asyncio.Task:
            assert watched.hub.subscribers("a") > 0
            return asyncio.ensure_future(watched.hub.publish("a", f"{context.request.query['name']} joined"))

        async def left(context, reason) -> None:
            await watched.hub.publish("a", f"{context.request.query['name']} left")

        watched = TransportListener(ready=joined, on_close=left)
        server = await serve(watched.app, handler_cancellation=handler_cancellation)
        anna = await listen(server, "/?name=Anna")
        assert await anna.data(1) == ["Anna joined"]
        bert = await listen(server, "/?name=Bert")
        assert await bert.data(1) == ["Bert joined"]
        await bert.close()
        cecile = await listen(server, "/?name=Cecile")
        assert await anna.data(3) in (["Bert joined", "Bert left", "Cecile joined"],
                                      ["Bert joined", "Cecile joined", "Bert left"])  # fmt: skip
        cecile.raw.reset()
        assert await anna.data(1) == ["Cecile left"]
        head = await listen(server, "/?name=Nobody", method="HEAD")
        await watched.hub.publish("a", "end")
        assert await anna.data(1) == ["end"]
        for listener in anna, cecile, head:
            await listener.close()
        await watched.until_over()


@pytest.mark.parametrize("held", [False, True], ids=["head first", "head and first frame"])
async def test_statistics_of_a_stream_count_what_went_out(serve, logged, held):
    watched = TransportListener(held=held, replay=5)
    for number in range(7):
        await watched.hub.publish("a", str(number))
    listener = await listen(await serve(watched.app))
    await watched.until_open()
    for number in range(5):
        await watched.hub.publish("a", str(number))
        await watched.hub.publish("b", "other")
    await listener.data(10)
    statistics = watched.stream.statistics()
    assert (statistics.events, statistics.bytes) == (10, len(listener.body))
    assert (statistics.buffered, statistics.unsent, statistics.dropped, statistics.reason) == (0, 0, 0, None)
    await listener.close()
    await watched.until_over()
    over = watched.stream.statistics()
    assert (over.events, over.bytes, over.reason) == (10, len(listener.body), CloseReason.CLIENT_LEFT)
    assert over.seconds == watched.stream.statistics().seconds  # it stands still


async def test_counters_return_to_nothing_whatever_ends_the_streams(serve, logged, handler_cancellation):
    """peer bugs 44 and 45: also when a write fails, a function raises, or a client leaves in the middle of all."""
    ends = ["leave", "reset", "kick", "raise", "select", "age", "HEAD"]

    def ready(subscriber, context) -> None:
        if context.request.query["end"] == "raise":
            raise LookupError

    def select(context, record) -> bool:
        return context.request.query["end"] != "select" or {}["no"]

    hub = Hub(history=0)
    watched = TransportListener(
        ["a", "b.*"], ready, hub=hub, select=select, max_age=2.0, snapshot=lambda context: ["state"], heartbeat=0.01
    )
    server = await serve(watched.app, handler_cancellation=handler_cancellation)
    listeners = []
    for number in range(35):
        end = ends[number % len(ends)]
        listener = await listen(server, f"/?end={end}", method="HEAD" if end == "HEAD" else "GET")
        listeners.append(listener)
        await hub.publish("b.x", Event("x" * number))
        if end == "leave":
            listener.raw.writer.close()
        elif end == "reset":
            listener.raw.reset()
        elif end == "kick":
            watched.opened[-1][1].stream.end(CloseReason.KICKED)
    await watched.until_over()
    statistics = hub.statistics()
    assert (statistics.subscribers, statistics.behind, statistics.groups, statistics.topics) == (0, 0, 0, 0)
    assert (statistics.records, statistics.bytes) == (0, 0)
    assert len(watched.reasons) == 30
    assert set(watched.reasons) == {
        CloseReason.CLIENT_LEFT, CloseReason.KICKED, CloseReason.ERROR, CloseReason.EXPIRED}  # fmt: skip
    for listener in listeners:
        await listener.close()


@pytest.mark.parametrize("reason", [CloseReason.CLOSED, CloseReason.SHUTDOWN])
async def test_who_is_behind_gets_what_was_published_before_the_end_and_nothing_later(serve, reason):
    """The end of a stream that has to come back for nothing, and the stop of a server whose ids end with it."""
    hub, contexts = Hub(), []
    app = application(hub, "a", stream_ready=lambda subscriber, context: contexts.append(context))
    listener = await listen(await serve(app), room=4096)
    ids = []
    while not hub.statistics().behind:
        ids.append(await hub.publish("a", "x" * 1000))
        await asyncio.sleep(0)
    ids += [await hub.publish("a", "x" * 1000) for _ in range(200)]
    contexts[0].stream.end(reason)
    await hub.publish("a", "too late")
    events = await listener.rest()
    assert [event.id for event in events if event.data] == ids
    assert listener.complete
    assert contexts[0].stream.statistics().events == len(ids)
    await listener.close()
