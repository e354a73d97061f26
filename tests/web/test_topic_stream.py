"""An open topic stream: why it ends, its ``stream_ready``, and its statistics."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason, Event, Hub, RequestContext, Subscriber
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


class ObservedStreams:
    """Topic streams of a Hub, their subscribers, and why they ended."""

    def __init__(self, topics="a", ready=None, *, deferred: bool = False, **options: object) -> None:
        self.hub = options.pop("hub", None) or Hub()
        self.opened: list[tuple[Subscriber, RequestContext]] = []
        self.reasons: list[CloseReason] = []

        def stream_ready(subscriber: Subscriber, context: RequestContext) -> object:
            self.opened.append((subscriber, context))
            return None if ready is None else ready(subscriber, context)

        options.setdefault("on_close", lambda context, reason: self.reasons.append(reason))
        self.app = application(self.hub, topics, stream_ready=None if deferred else stream_ready, **options)
        self.stream = None

    async def until_open(self, streams: int = 1) -> None:
        await until(lambda: self.hub.statistics().subscribers == streams and self.hub.statistics().catching_up == 0)
        self.stream = next(iter(self.app[STREAMS]))

    async def until_closed(self) -> None:
        await until(lambda: self.hub.statistics().subscribers == len(self.app[STREAMS]) == 0)


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] in {"error", "critical", "warning"}]


@pytest.mark.parametrize("deferred", [False, True], ids=["headers first", "headers with first frame"])
class TestEnd:
    async def test_a_disconnect_is_reported_once(self, serve, logged, deferred, handler_cancellation):
        streams = ObservedStreams(deferred=deferred)
        listener = await listen(await serve(streams.app, handler_cancellation=handler_cancellation))
        await streams.until_open()
        await listener.close()
        await streams.until_closed()
        assert streams.reasons == [CloseReason.CLIENT_LEFT]
        assert streams.stream.statistics().reason is CloseReason.CLIENT_LEFT
        assert streams.stream.subscriber.topics == frozenset()
        assert errors(logged) == []

    @pytest.mark.parametrize("reason", [CloseReason.KICKED, CloseReason.CLOSED])
    async def test_the_application_ends_it_cleanly_after_the_published_records(self, serve, logged, deferred, reason):
        streams = ObservedStreams(deferred=deferred)
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        last = await streams.hub.publish("a", "you have to leave")
        streams.stream.end(reason)
        await streams.hub.publish("a", "too late")
        assert [event.data for event in await listener.rest()] == ["you have to leave"]
        assert (listener.complete, listener.last_event_id) == (True, last)
        await streams.until_closed()
        assert streams.reasons == [reason]
        await listener.close()

    async def test_max_age_ends_it_cleanly_and_the_client_resumes(self, serve, logged, deferred):
        streams = ObservedStreams(max_age=0.05, deferred=deferred)
        server = await serve(streams.app)
        listener = await listen(server)
        await listener.rest()
        assert listener.complete
        assert streams.reasons == [CloseReason.EXPIRED]
        await streams.hub.publish("a", "meanwhile")
        again = await listen(server, after=listener.last_event_id)
        assert await again.data(1) == ["meanwhile"]
        await listener.close()
        await again.close()

    async def test_a_select_that_raises_ends_only_its_own_stream(self, serve, logged, raised, deferred):
        def select(context, record) -> bool:
            if context.request.query.get("bad"):
                raise LookupError("no such user")
            return True

        streams = ObservedStreams(select=select, deferred=deferred)
        server = await serve(streams.app)
        good, bad = await listen(server), await listen(server, "/?bad=1")
        await streams.until_open(2)
        await streams.hub.publish("a", "x")
        assert await good.data(1) == ["x"]
        assert await bad.rest() == []
        assert streams.reasons == [CloseReason.ERROR]
        assert not bad.complete
        await until(lambda: [str(error) for error in raised()] == ["no such user"])
        await bad.close()
        bad = await listen(server, "/?bad=1", after=streams.hub.history.id_of(0))  # raises while it catches up
        assert await bad.rest() == []
        assert streams.reasons == [CloseReason.ERROR] * 2
        await until(lambda: len(raised()) == 2)
        assert errors(logged) == []
        await bad.close()
        await good.close()


async def test_nothing_is_sent_after_the_end_of_a_stream_in_its_snapshot(serve, logged):
    asked = asyncio.Event()

    async def state(context):
        yield "1"
        yield "2"
        asked.set()
        streams.opened[0][0].close()
        yield "3"

    streams = ObservedStreams(snapshot=state)
    listener = await listen(await serve(streams.app))
    await within(asked.wait())
    assert [event.data for event in await listener.rest()] == ["1"]
    assert listener.complete
    await streams.until_closed()
    assert streams.reasons == [CloseReason.CLOSED]
    assert errors(logged) == []
    await listener.close()


class TestStreamReady:
    @pytest.mark.parametrize("when", ["at once", "later"])
    async def test_an_exception_ends_the_stream_and_is_raised_to_aiohttp(self, serve, logged, raised, when):
        def fail(subscriber, context) -> None:
            raise LookupError("no")

        async def fail_later(subscriber, context) -> None:
            await asyncio.sleep(0)
            fail(subscriber, context)

        streams = ObservedStreams(ready=fail if when == "at once" else fail_later)
        listener = await listen(await serve(streams.app))
        assert await listener.rest() == []
        assert not listener.complete
        assert streams.reasons == [CloseReason.ERROR]
        assert [str(error) for error in raised()] == ["no"]
        assert errors(logged) == []
        await listener.close()
        await streams.until_closed()

    async def test_a_running_one_is_cancelled_with_the_stream(self, serve, logged, handler_cancellation):
        ended = asyncio.Event()

        async def ready(subscriber, context) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        streams = ObservedStreams(ready=ready)
        listener = await listen(await serve(streams.app, handler_cancellation=handler_cancellation))
        await streams.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()
        await within(ended.wait())
        await streams.until_closed()
        assert streams.reasons == [CloseReason.CLIENT_LEFT]
        assert errors(logged) == []

    @pytest.mark.parametrize("how", ["at once", "later", "in a thread", "by its context"])
    @pytest.mark.parametrize("snapshot", [None, lambda context: ["state"]])
    async def test_it_may_close_its_stream_which_ends_after_the_published_records(self, serve, logged, how, snapshot):
        async def later(subscriber, context) -> None:
            await streams.hub.publish("a", "x")
            if how == "in a thread":
                await asyncio.to_thread(subscriber.close)
            elif how == "by its context":
                assert context.stream.subscriber == subscriber
                assert len({context.stream.subscriber, subscriber}) == 1
                context.stream.subscriber.close()
            else:
                subscriber.close()
            await streams.hub.publish("a", "too late")

        ready = (lambda subscriber, context: subscriber.close()) if how == "at once" else later
        streams = ObservedStreams(ready=ready, snapshot=snapshot, prime=False)
        listener = await listen(await serve(streams.app))
        expected = [] if how == "at once" else ["x"] if snapshot is None else ["state", "x"]
        assert [event.data for event in await listener.rest()] == expected
        assert listener.complete
        await streams.until_closed()
        assert streams.reasons == [CloseReason.CLOSED]
        subscriber = streams.opened[0][0]
        subscriber.close()
        subscriber.add("b")
        await asyncio.to_thread(subscriber.remove, "b")
        assert subscriber.topics == frozenset()
        assert errors(logged) == []
        await listener.close()

    async def test_a_stream_without_topics_waits_for_new_ones(self, serve, logged):
        streams = ObservedStreams(ready=lambda subscriber, context: subscriber.remove("a"))
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        streams.opened[0][0].add("b")
        await streams.hub.publish("a", "not this")
        await streams.hub.publish("b", "this")
        assert await listener.data(1) == ["this"]
        await listener.close()

    async def test_the_subscriber_has_only_public_names(self, serve, logged):
        streams = ObservedStreams()
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        names = {name for name in dir(streams.opened[0][0]) if not name.startswith("_")}
        assert names == {"topics", "add", "remove", "close"}
        await listener.close()

    async def test_the_stream_stays_open_after_it_returns(self, serve, logged):
        async def ready(subscriber, context) -> None:
            await asyncio.sleep(0)

        streams = ObservedStreams(ready=ready)
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        await streams.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()

    async def test_it_announces_presence_and_on_close_absence_once_each(self, serve, logged, handler_cancellation):
        """stream_ready runs once the stream is subscribed, so that the stream receives its own announcement."""

        def joined(subscriber, context) -> asyncio.Task:
            assert streams.hub.subscribers("a") > 0
            return asyncio.ensure_future(streams.hub.publish("a", f"{context.request.query['name']} joined"))

        async def left(context, reason) -> None:
            await streams.hub.publish("a", f"{context.request.query['name']} left")

        streams = ObservedStreams(ready=joined, on_close=left)
        server = await serve(streams.app, handler_cancellation=handler_cancellation)
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
        await streams.hub.publish("a", "end")
        assert await anna.data(1) == ["end"]
        for listener in anna, cecile, head:
            await listener.close()
        await streams.until_closed()


@pytest.mark.parametrize("deferred", [False, True], ids=["headers first", "headers with first frame"])
async def test_statistics_count_what_was_sent(serve, logged, deferred):
    streams = ObservedStreams(deferred=deferred, replay=5)
    for number in range(7):
        await streams.hub.publish("a", str(number))
    listener = await listen(await serve(streams.app))
    await streams.until_open()
    for number in range(5):
        await streams.hub.publish("a", str(number))
        await streams.hub.publish("b", "other")
    await listener.data(10)
    statistics = streams.stream.statistics()
    assert (statistics.events, statistics.bytes) == (10, len(listener.body))
    assert (statistics.buffered, statistics.unsent, statistics.dropped, statistics.reason) == (0, 0, 0, None)
    await listener.close()
    await streams.until_closed()
    final = streams.stream.statistics()
    assert (final.events, final.bytes, final.reason) == (10, len(listener.body), CloseReason.CLIENT_LEFT)
    assert final.seconds == streams.stream.statistics().seconds  # it stays the same


async def test_counters_return_to_zero_however_the_streams_end(serve, logged, handler_cancellation):
    """Also if a write fails, a function raises, or a client disconnects midway."""
    ends = ["leave", "reset", "kick", "raise", "select", "age", "HEAD"]

    def ready(subscriber, context) -> None:
        if context.request.query["end"] == "raise":
            raise LookupError

    def select(context, record) -> bool:
        return context.request.query["end"] != "select" or {}["no"]

    hub = Hub(history=0)
    streams = ObservedStreams(
        ["a", "b.*"], ready, hub=hub, select=select, max_age=2.0, snapshot=lambda context: ["state"], heartbeat=0.01
    )
    server = await serve(streams.app, handler_cancellation=handler_cancellation)
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
            streams.opened[-1][1].stream.end(CloseReason.KICKED)
    await streams.until_closed()
    statistics = hub.statistics()
    assert (statistics.subscribers, statistics.catching_up, statistics.groups, statistics.topics) == (0, 0, 0, 0)
    assert (statistics.records, statistics.bytes) == (0, 0)
    assert len(streams.reasons) == 30
    assert set(streams.reasons) == {
        CloseReason.CLIENT_LEFT, CloseReason.KICKED, CloseReason.ERROR, CloseReason.EXPIRED}  # fmt: skip
    for listener in listeners:
        await listener.close()


@pytest.mark.parametrize("reason", [CloseReason.CLOSED, CloseReason.SHUTDOWN])
async def test_a_client_that_is_catching_up_gets_exactly_the_records_published_before_the_end(serve, reason):
    """Both for a stream that the application ends and for a server that stops."""
    hub, contexts = Hub(), []
    app = application(hub, "a", stream_ready=lambda subscriber, context: contexts.append(context))
    listener = await listen(await serve(app), receive_buffer=4096)
    ids = []
    while not hub.statistics().catching_up:
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


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others in its group"])
async def test_a_stream_that_select_closes_amid_a_flush_gets_what_was_published_before(serve, others):
    hub, opened = Hub(), []

    def select(context: RequestContext, record) -> bool:
        if record.event.data == "done":
            for subscriber, of in opened:
                if of is context:
                    subscriber.close()
        return True

    def ready(subscriber: Subscriber, context: RequestContext) -> None:
        opened.append((subscriber, context))

    server = await serve(application(hub, "a", select=select, stream_ready=ready))
    listeners = [await listen(server) for _ in range(2 if others else 1)]
    await until(lambda: hub.statistics().subscribers == len(listeners) and not hub.statistics().catching_up)
    for data in ("one", "two", "done", "too late"):  # all in one flush
        hub.publish_threadsafe("a", data)
    for listener in listeners:
        assert [event.data for event in await listener.rest() if event.data] == ["one", "two", "done", "too late"]
        assert listener.complete
        await listener.close()
