"""The Hubs that are given to ``setup`` open and close with the application."""

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
    """Return the active timers of the Hub."""
    timer = hub._dispatcher._expiry
    return [] if timer is None or timer.cancelled() else [timer]


async def test_other_threads_can_publish_once_the_application_has_started(serve):
    hub, app = Hub(), web.Application()
    setup(app, hub)
    with pytest.raises(RuntimeError, match=r"no event loop yet; setup\(app, hub\) binds it"):
        hub.publish_threadsafe("a", "x")
    await serve(app)
    future = await asyncio.to_thread(hub.publish_threadsafe, "a", "x")
    assert await asyncio.wrap_future(future) == hub.history.id_of(1)


async def test_on_shutdown_streams_send_published_events_the_final_event_and_a_complete_body(serve):
    """This includes events that an ``on_shutdown`` handler publishes."""
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
        event, bye = await listener.rest()
        assert (event.data, bye.name, bye.data, bye.retry) == ("we stop", "bye", "bye", 2000)
        assert listener.complete
        assert listener.last_event_id == hub.history.id_of(1)
        await listener.close()
    assert reasons == [CloseReason.SHUTDOWN] * 3
    assert hub.statistics().subscribers == 0


@pytest.mark.parametrize("published", [0, 1])
async def test_a_closed_hub_leaves_no_task_and_no_timer(serve, published):
    """The timer that expires old records is cancelled too."""
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


async def test_a_hub_can_be_given_to_one_application_after_another(serve):
    """Its history is kept, so that a client can resume."""
    hub, last = Hub(), None
    for number in range(3):
        app = web.Application()
        setup(app, hub)
        app.router.add_get("/", as_handler(start_topic_stream(hub, "a")))
        server = await serve(app)
        listener = await listen(server, after=last)
        await until(lambda: hub.subscribers("a") == 1)
        await hub.publish("a", str(number))
        assert (
            await listener.data(1 if last is None else 2) == [str(number)] if last is None else ["between", str(number)]
        )
        await server.stop()
        await listener.close()
        last = listener.last_event_id
        await hub.publish("a", "between")


async def test_several_hubs_may_be_given(serve):
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
def test_other_objects_than_hubs_raise(wrong):
    app = web.Application()
    with pytest.raises(TypeError, match=r"setup takes the application and its Hubs, not"):
        setup(app, Hub(), wrong)
    assert STREAMS not in app
    setup(app)
    with pytest.raises(RuntimeError, match="give it all its options in one call"):
        setup(app, Hub())


class SlowBroker(MemoryBroker):
    """A broker that awaits a function before it closes."""

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


async def test_hubs_close_concurrently(serve):
    """Each waits for the other."""
    both = [asyncio.Event(), asyncio.Event()]

    def before(mine, other):
        async def meet():
            mine.set()
            await other.wait()

        return meet

    hubs = Hub(SlowBroker(before(*both))), Hub(SlowBroker(before(*reversed(both))))
    app = web.Application()
    setup(app, *hubs)
    server = await serve(app)
    async with asyncio.timeout(10):
        await server.stop()
    assert [await is_closed(hub) for hub in hubs] == [True, True]


async def test_a_hub_that_hangs_while_closing_is_logged_and_does_not_keep_others_open(serve, monkeypatch, logged):
    monkeypatch.setattr(hub_module, "BROKER_CLOSE_TIMEOUT", 0.05)
    hubs = Hub(MemoryBroker(MemoryLog())), Hub(SlowBroker(asyncio.Event().wait)), Hub(MemoryBroker(MemoryLog()))
    app = web.Application()
    setup(app, *hubs)
    server = await serve(app)
    async with asyncio.timeout(10):
        await server.stop()
    assert [await is_closed(hub) for hub in (hubs[0], hubs[2])] == [True, True]
    (line,) = [line for line in logged if line["event"] == "took_too_long"]
    assert "SlowBroker" in line["what"]


@pytest.mark.parametrize("failing", [1, 2])
async def test_an_exception_while_closing_is_raised_and_does_not_keep_other_hubs_open(failing):
    async def fail():
        raise ZeroDivisionError

    hubs = Hub(MemoryBroker(MemoryLog())), Hub(MemoryBroker(MemoryLog()))
    failures = [Hub(SlowBroker(fail)) for _ in range(failing)]
    app = web.Application()
    setup(app, hubs[0], *failures, hubs[1])
    runner = web.AppRunner(app)
    await runner.setup()
    with pytest.raises(ZeroDivisionError if failing == 1 else ExceptionGroup) as raised:
        await runner.cleanup()
    if failing > 1:
        assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError] * failing
    assert [await is_closed(hub) for hub in hubs] == [True, True]
