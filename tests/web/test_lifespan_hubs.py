"""What setup(app, hub) does for a Hub."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_interceptors import BrokerDown, CloseReason, Drain, Event, Hub, as_handler, setup, start_topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import hub as hub_module
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


def pending(hub: Hub) -> list[asyncio.TimerHandle]:
    """Return the Hub's own timers that are still to come."""
    timer = hub._fanout._expiry
    return [] if timer is None or timer.cancelled() else [timer]


async def test_other_threads_can_publish_from_the_start_of_the_application(serve):
    hub, app = Hub(), web.Application()
    setup(app, hub)
    with pytest.raises(RuntimeError, match=r"no event loop yet: setup\(app, hub\) gives it"):
        hub.publish_threadsafe("a", "x")
    await serve(app)
    future = await asyncio.to_thread(hub.publish_threadsafe, "a", "x")
    assert await asyncio.wrap_future(future) == hub.log.id_of(1)


async def test_streams_get_what_was_published_the_farewell_and_a_clean_end(serve):
    """Also what the application publishes while it stops, before its streams are ended."""
    hub, reasons = Hub(), []
    app = web.Application()

    async def announce(app: web.Application) -> None:
        await hub.publish("a", "we stop")

    app.on_shutdown.append(announce)
    setup(app, hub, drain=Drain(farewell=Event("bye", name="bye"), spread=0))
    stream = start_topic_stream(hub, "a", retry=2000, on_close=lambda context, reason: reasons.append(reason))
    app.router.add_get("/s/", as_handler(stream))
    server = await serve(app)
    listeners = [await listen(server, "/s/") for _ in range(3)]
    await until(lambda: hub.subscribers("a") == 3)
    await server.stop()
    for listener in listeners:
        said, bye = await listener.rest()
        assert (said.data, bye.name, bye.data, bye.retry) == ("we stop", "bye", "bye", 2000)
        assert listener.complete
        assert listener.last_event_id == hub.log.id_of(1)
        await listener.close()
    assert reasons == [CloseReason.SHUTDOWN] * 3
    assert hub.statistics().subscribers == 0


@pytest.mark.parametrize("published", [0, 1])
async def test_nothing_of_a_hub_waits_in_the_event_loop_when_its_application_has_ended(serve, published):
    """No task, no timer: not the one that looks for records that are too old either."""
    hub, app = Hub(history_age=1000.0), web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "a", max_age=1000.0)))
    server = await serve(app)
    listener = await listen(server)
    for _ in range(published):
        await hub.publish("a", "x")
    await listener.frame()
    timers = {id(timer) for timer in pending(hub)}
    assert len(timers) == published
    await server.stop()
    assert pending(hub) == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await listener.close()


async def test_a_hub_serves_one_life_of_an_application_after_the_other(serve):
    """Its history stays: a client goes on where it was."""
    hub, last = Hub(), None
    for life in range(3):
        app = web.Application()
        setup(app, hub)
        app.router.add_get("/", as_handler(start_topic_stream(hub, "a")))
        server = await serve(app)
        listener = await listen(server, after=last)
        await until(lambda: hub.subscribers("a") == 1)
        await hub.publish("a", str(life))
        assert await listener.data(1 if last is None else 2) == [str(life)] if last is None else ["between", str(life)]
        await server.stop()
        await listener.close()
        last = listener.last_event_id
        await hub.publish("a", "between")


async def test_many_hubs_may_be_given(serve):
    one, two, app = Hub(), Hub(), web.Application()
    setup(app, one, two)
    app.router.add_get("/one", as_handler(start_topic_stream(one, "a")))
    app.router.add_get("/two", as_handler(start_topic_stream(two, "a")))
    server = await serve(app)
    first, second = await listen(server, "/one"), await listen(server, "/two")
    await until(lambda: one.subscribers("a") == two.subscribers("a") == 1)
    for hub, data in (one, "1"), (two, "2"):
        await asyncio.to_thread(hub.publish_threadsafe("a", data).result, 10)
    assert (await first.data(1), await second.data(1)) == (["1"], ["2"])
    await first.close()
    await second.close()


@pytest.mark.parametrize("wrong", [None, "hub", Hub])
def test_what_is_no_hub_is_refused(wrong):
    app = web.Application()
    with pytest.raises(TypeError, match=r"setup takes the application and its Hubs, not"):
        setup(app, Hub(), wrong)
    assert STREAMS not in app
    setup(app)
    with pytest.raises(RuntimeError, match="give it all its options in one call"):
        setup(app, Hub())


class Reluctant(MemoryBroker):
    """A broker whose close does something of its own before."""

    def __init__(self, before):
        super().__init__(MemoryLog())
        self.before = before

    async def close(self):
        await self.before()
        await super().close()


async def is_closed(hub: Hub) -> bool:
    try:
        await hub.publish("a", "x")
    except BrokerDown:
        return True
    return False


async def test_its_hubs_close_side_by_side(serve):
    """Each waits for the other: one after the other they would never end."""
    both = [asyncio.Event(), asyncio.Event()]

    def before(mine, others):
        async def meet():
            mine.set()
            await others.wait()

        return meet

    hubs = Hub(Reluctant(before(*both))), Hub(Reluctant(before(*reversed(both))))
    app = web.Application()
    setup(app, *hubs)
    server = await serve(app)
    async with asyncio.timeout(10):
        await server.stop()
    assert [await is_closed(hub) for hub in hubs] == [True, True]


async def test_one_that_hangs_as_it_closes_leaves_no_other_one_open_and_is_named(serve, monkeypatch, logged):
    monkeypatch.setattr(hub_module, "GIVING_BACK", 0.05)
    hubs = Hub(MemoryBroker(MemoryLog())), Hub(Reluctant(asyncio.Event().wait)), Hub(MemoryBroker(MemoryLog()))
    app = web.Application()
    setup(app, *hubs)
    server = await serve(app)
    async with asyncio.timeout(10):
        await server.stop()
    assert [await is_closed(hub) for hub in (hubs[0], hubs[2])] == [True, True]
    (line,) = [line for line in logged if line["event"] == "took_too_long"]
    assert "Reluctant" in line["what"]


@pytest.mark.parametrize("failing", [1, 2])
async def test_what_fails_as_it_closes_is_told_and_leaves_no_other_one_open(failing):
    async def fail():
        raise ZeroDivisionError

    hubs = Hub(MemoryBroker(MemoryLog())), Hub(MemoryBroker(MemoryLog()))
    failures = [Hub(Reluctant(fail)) for _ in range(failing)]
    app = web.Application()
    setup(app, hubs[0], *failures, hubs[1])
    runner = web.AppRunner(app)
    await runner.setup()
    with pytest.raises(ZeroDivisionError if failing == 1 else ExceptionGroup) as raised:
        await runner.cleanup()
    if failing > 1:
        assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError] * failing
    assert [await is_closed(hub) for hub in hubs] == [True, True]
