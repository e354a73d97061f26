"""Records in the process itself: ``Hub.listen``."""

from __future__ import annotations

import asyncio
import gc

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import Gap, GapReason, Hub, Lagged, Record, setup
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.waiting import TIMEOUT, until, within


async def take(listener, count):
    """Return the data of the next records; "gap" for a gap."""
    async with asyncio.timeout(TIMEOUT):
        items = [await anext(listener) for _ in range(count)]
    return ["gap" if isinstance(item, Gap) else item.event.data for item in items]


async def test_records_arrive_with_topic_key_and_id():
    hub = Hub()
    async with hub.listen("orders.>") as records:
        event_id = await hub.publish("orders.eu", "x", key="7")
        await hub.publish("news", "not this")
        record = await within(anext(records))
        assert isinstance(record, Record)
        assert (record.topic, record.key, record.id, record.event.data) == ("orders.eu", "7", event_id, "x")
    assert hub.statistics().subscribers == 0


async def test_a_listener_starts_when_it_is_made():
    hub = Hub()
    await hub.publish("a", "before")
    records = hub.listen("a")
    await hub.publish("a", "after")
    assert await take(records, 1) == ["after"]


async def test_a_loop_gets_everything_in_order_while_it_is_published():
    hub, received = Hub(), []

    async def consume():
        async for record in hub.listen(["a", "b"]):
            received.append(record.event.data)
            if record.event.data == "199":
                return

    consumer = asyncio.create_task(consume())
    await until(lambda: hub.statistics().subscribers == 1)
    for number in range(200):
        await hub.publish("ab"[number % 2], str(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await within(consumer)
    assert received == [str(number) for number in range(200)]


async def test_it_resumes_after_an_id_or_replays():
    hub = Hub()
    ids = [await hub.publish("a", str(number)) for number in range(5)]
    assert await take(hub.listen("a", after=ids[2]), 2) == ["3", "4"]
    assert await take(hub.listen("a", replay=2), 2) == ["3", "4"]


async def test_ephemeral_records_arrive_while_it_is_live():
    hub = Hub()
    records = hub.listen("a")
    await asyncio.sleep(0)
    await hub.publish("a", "x", ephemeral=True)
    record = await within(anext(records))
    assert (record.event.data, record.id) == ("x", None)


async def test_select_filters_and_its_error_is_raised():
    hub = Hub()

    def select(record):
        if record.event.data == "bad":
            raise LookupError
        return record.event.data != "no"

    records = hub.listen("a", select=select)
    await asyncio.sleep(0)
    for data in ("yes", "no", "also"):
        await hub.publish("a", data)
    assert await take(records, 2) == ["yes", "also"]
    await hub.publish("a", "bad")
    with pytest.raises(LookupError):
        await within(anext(records))
    with pytest.raises(StopAsyncIteration):
        await within(anext(records))
    assert hub.statistics().subscribers == 0


class TestFallingBehind:
    async def test_a_slow_consumer_catches_up_from_the_history(self):
        """Its buffer is bounded, and streams are not delayed."""
        hub = Hub(history=1000)
        records = hub.listen("a", buffer=4)
        await asyncio.sleep(0)
        for number in range(500):
            await hub.publish("a", str(number))
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert hub.statistics().catching_up == 1
        assert await take(records, 500) == [str(number) for number in range(500)]
        await hub.publish("a", "live again")
        assert await take(records, 1) == ["live again"]
        assert hub.statistics().catching_up == 0

    async def overflowing(self, **options):
        """Return a listener whose next records were evicted, after one that it has."""
        hub = Hub(history=3)
        records = hub.listen("a", buffer=1, **options)
        await asyncio.sleep(0)
        for number in range(10):
            await hub.publish("a", str(number), key="k")
            await asyncio.sleep(0)
        return hub, records

    async def test_what_was_evicted_raises_lagged_after_the_records_before(self):
        hub, records = await self.overflowing()
        assert await take(records, 1) == ["0"]
        with pytest.raises(Lagged, match="are missing: evicted") as caught:
            await within(anext(records))
        assert caught.value.gap.reason is GapReason.EVICTED
        assert hub.statistics().subscribers == 0
        with pytest.raises(StopAsyncIteration):
            await within(anext(records))

    async def test_or_yields_a_gap(self):
        hub, records = await self.overflowing(on_gap="signal")
        assert await take(records, 5) == ["0", "gap", "7", "8", "9"]
        await hub.publish("a", "live again")
        assert await take(records, 1) == ["live again"]

    async def test_or_the_latest_record_of_each_key(self):
        _, records = await self.overflowing(on_gap="conflate")
        assert await take(records, 2) == ["0", "9"]

    @pytest.mark.parametrize(("on_gap", "first"), [("signal", "gap"), ("conflate", "gap"), ("close", None)])
    async def test_an_unknown_id_is_a_gap_at_the_start(self, on_gap, first):
        hub = Hub()
        await hub.publish("a", "x")
        records = hub.listen("a", after="foreign-1", on_gap=on_gap)
        if first is None:
            with pytest.raises(Lagged, match="foreign-1 are missing: foreign"):
                await within(anext(records))
        else:
            assert await take(records, 2) == ["gap", "x"]


class TestEnding:
    async def test_it_ends_when_the_hub_is_closed(self):
        hub = Hub(MemoryBroker(MemoryLog()))
        records = hub.listen("a")
        await until(lambda: hub.ready)
        await hub.publish("a", "x")
        assert await take(records, 1) == ["x"]
        await hub.close()
        with pytest.raises(StopAsyncIteration):
            await within(anext(records))

    async def test_a_hub_without_a_broker_ends_it_too(self):
        hub = Hub()
        records = hub.listen("a")
        waiting = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
        await hub.close()
        with pytest.raises(StopAsyncIteration):
            await within(waiting)

    async def test_it_ends_when_the_application_begins_to_stop(self, serve, session):
        """A WebSocket that listens would otherwise delay the stop until aiohttp's timeout."""
        hub = Hub()

        async def handler(request):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async with hub.listen("a") as records:
                async for record in records:
                    await socket.send_str(record.event.data)
            await socket.close()
            return socket

        app = web.Application()
        app.router.add_get("/", handler)
        setup(app, hub)
        server = await serve(app, shutdown_timeout=3600)
        async with session.ws_connect(server.url) as socket:
            await until(lambda: hub.statistics().subscribers == 1)
            await hub.publish("a", "x")
            assert await socket.receive_str() == "x"
            stopping = asyncio.create_task(server.stop())
            assert (await within(socket.receive())).type.name == "CLOSE"
            await within(stopping)

    async def test_closing_it_ends_a_waiting_consumer(self):
        hub = Hub()
        records = hub.listen("a")
        waiting = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
        await records.aclose()
        await records.aclose()
        with pytest.raises(StopAsyncIteration):
            await within(waiting)

    async def test_a_consumer_that_is_cancelled_loses_nothing(self):
        hub = Hub()
        records = hub.listen("a")
        waiting = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
        await hub.publish("a", "x")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await take(records, 1) == ["x"]

    async def test_one_that_is_deleted_ends_its_subscription(self):
        """As by a ``break`` out of the loop."""
        hub = Hub()
        await hub.publish("a", "x")
        async for _ in hub.listen("a", replay=1):
            break
        gc.collect()
        await until(lambda: hub.statistics().subscribers == 0)

    def test_one_that_is_deleted_after_its_event_loop_is_no_error(self):
        async def make():
            return Hub().listen("a")

        del (listener := [asyncio.run(make())])[:]
        assert listener == []


async def test_with_a_broker_it_waits_for_the_history():
    log = MemoryLog()
    first = Hub(MemoryBroker(log))
    event_id = await first.publish("a", "0")
    await first.publish("a", "1")
    second = Hub(MemoryBroker(log))
    records = second.listen("a", after=event_id)
    assert await take(records, 1) == ["1"]
    await first.publish("a", "2")
    assert await take(records, 1) == ["2"]
    await first.close()
    await second.close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"buffer": 0}, ValueError),
        ({"buffer": 1.5}, TypeError),
        ({"replay": -1}, ValueError),
        ({"after": "x", "replay": 1}, ValueError),
        ({"after": 5}, TypeError),
        ({"on_gap": "ignore"}, ValueError),
    ],
    ids=repr,
)
async def test_an_invalid_option_is_refused_and_leaves_nothing(options, error):
    hub = Hub()
    with pytest.raises(error):
        hub.listen("a", **options)
    with pytest.raises(ValueError, match="topic"):
        hub.listen("a..b")
    assert hub.statistics().subscribers == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 8).map(lambda count: ("publish", count)), st.just(("read", 1)), st.just(("turn", 1))),
        max_size=60,
    ),
    st.integers(1, 6),
    st.integers(1, 12),
)
def test_what_is_read_is_what_was_published_or_announced(actions, buffer, history):
    """In order, once, and each missing record is within a gap."""

    async def run():
        hub, published, received = Hub(history=history), [], []
        records = hub.listen("a", buffer=buffer, on_gap="signal")
        expected_next = 0

        def check(item):
            nonlocal expected_next
            if isinstance(item, Gap):
                received.append(None)
                expected_next = None
                return
            number = int(item.event.data)
            if expected_next is None:
                assert number >= len([data for data in received if data is not None])
            else:
                assert number == expected_next
            received.append(number)
            expected_next = number + 1

        for action, count in actions:
            if action == "publish":
                for _ in range(count):
                    published.append(await hub.publish("a", str(len(published))))
            elif action == "turn":
                await asyncio.sleep(0)
            elif records._sink._items:
                check(await anext(records))
        await hub.publish("a", str(len(published)))
        async with asyncio.timeout(TIMEOUT):
            async for item in records:
                check(item)
                if received[-1] == len(published):
                    break
        numbers = [number for number in received if number is not None]
        assert numbers == sorted(set(numbers))

    asyncio.run(run())
