"""An exception in the code of one stream (a queue, a notice, an error_event, on_close, select) affects no other stream.

Tested for each loop over streams: the flush queue, the timer queue, the Hub's dispatcher and the drain.
"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientPayloadError, web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    Hub,
    SlidingQueue,
    as_handler,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.timers import flush_queue, timer_queue
from tests.waiting import until, within


class Custom(BaseException):
    """A BaseException that is not an Exception."""


ERRORS = [ValueError, Custom]


class Bad:
    """Fail in each callback."""

    def __init__(self, error):
        self.error = error

    def flush(self):
        raise self.error

    def on_timer(self, now):
        raise self.error


class Good:
    """Count the callbacks."""

    def __init__(self):
        self.done = 0

    def flush(self):
        self.done += 1

    def on_timer(self, now):
        self.done += 1


@pytest.mark.parametrize("error", ERRORS)
async def test_an_exception_in_a_flush_does_not_affect_other_flushes(error):
    reported, good = [], Good()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    bad = Bad(error("of one"))
    for stream in (bad, good):
        flush_queue().add(stream)
    await until(lambda: good.done == 1)
    assert reported == [bad.error]


@pytest.mark.parametrize("error", ERRORS)
async def test_an_exception_in_a_timer_does_not_affect_other_timers(error):
    reported, good = [], Good()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    bad = Bad(error("of one"))
    now = asyncio.get_running_loop().time()
    for owner in (bad, good):
        timer_queue().add(owner, now)
    await until(lambda: good.done == 1)
    assert reported == [bad.error]


def test_remaining_callbacks_run_if_the_event_loop_continues_after_an_exit_exception():
    good = Good()
    loop = asyncio.new_event_loop()

    async def begin():
        flush_queue().add(Bad(KeyboardInterrupt()))
        flush_queue().add(good)
        timer_queue().add(good, loop.time())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(begin())
    loop.run_until_complete(asyncio.wait_for(until(lambda: good.done == 2), 10))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def failing_queue(method, error):
    """Return a queue class whose method raises once ``broken`` is set."""

    def fail(self, *arguments):
        if made.broken:
            raise error(f"{method} is broken")
        return getattr(super(made, self), method)(*arguments)

    made = type("Fails", (asyncio.Queue,), {method: fail, "broken": False})
    return made


def application_with(broken):
    """Return an application with a stream that has such a queue and one that doesn't, and a list of their channels."""
    channels = []

    async def ready(channel, context):
        channels.append(channel)
        await channel.wait_closed()

    app = web.Application()
    app.router.add_get("/bad", as_handler(start_event_stream(ready, buffer=lambda: broken(10))))
    app.router.add_get("/good", as_handler(start_event_stream(ready)))
    return app, channels


async def test_an_exception_in_a_queue_ends_its_stream_only(serve, session, logged):
    for method in ("qsize", "empty", "get_nowait", "_get"):
        for error in ERRORS:
            broken = failing_queue(method, error)
            channels = []

            async def ready(channel, context, channels=channels):
                channels.append((channel, context))
                await channel.wait_closed()

            app = web.Application()
            app.router.add_get("/bad", as_handler(start_event_stream(ready, buffer=lambda broken=broken: broken(10))))
            app.router.add_get("/good", as_handler(start_event_stream(ready)))
            server = await serve(app)
            async with (
                open_stream(session, server.url + "/bad") as bad,
                open_stream(session, server.url + "/good") as good,
            ):
                await until(lambda channels=channels: len(channels) == 2)
                (of_bad, context), (of_good, _) = channels
                of_bad.put_nowait("a")
                of_good.put_nowait("a")
                broken.broken = True
                if method == "qsize":
                    of_bad.close()
                assert (await good.next()).data == "a"
                with pytest.raises(ClientPayloadError):  # the body is incomplete
                    await bad.rest()
                assert of_bad.reason is CloseReason.ERROR
                assert context.stream.statistics().buffered == 0
                of_good.put_nowait("b")
                assert (await good.next()).data == "b"
                of_good.close()
                assert await good.rest() == []
    assert [line["event"] for line in logged if line["log_level"] == "error"] == []  # aiohttp logs the exception


async def test_an_exception_in_a_notice_ends_its_stream_only(serve, session, logged):
    def notice(count):
        if count > 1:
            raise ValueError("no notice")
        return Event.json(count)

    channels = []

    async def ready(channel, context):
        channels.append(channel)
        await channel.wait_closed()

    app = web.Application()
    app.router.add_get("/bad", as_handler(start_event_stream(ready, buffer=lambda: SlidingQueue(1, notice=notice))))
    app.router.add_get("/good", as_handler(start_event_stream(ready)))
    server = await serve(app)
    async with open_stream(session, server.url + "/bad") as bad, open_stream(session, server.url + "/good") as good:
        await until(lambda: len(channels) == 2)
        channels[0]._attach(channels[0]._on_ready)  # disables the synchronous flush, so that events are dropped
        for number in range(5):
            channels[0].put_nowait(str(number))
        channels[1].put_nowait("a")
        assert (await good.next()).data == "a"
        with pytest.raises(ClientPayloadError):
            await bad.rest()
        assert channels[0].reason is CloseReason.ERROR
        channels[1].close()
        assert await good.rest() == []
    assert [line["event"] for line in logged if line["log_level"] == "error"] == []


@pytest.mark.parametrize("error", ERRORS)
async def test_an_exception_in_select_ends_its_stream_only(serve, session, error):
    def select(context, record):
        if record.event.data == "bad":
            raise error("no selection")
        return True

    hub = Hub()
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/bad", as_handler(start_topic_stream(hub, "t", select=select)))
    app.router.add_get("/good", as_handler(start_topic_stream(hub, "t")))
    server = await serve(app)
    async with open_stream(session, server.url + "/bad") as bad, open_stream(session, server.url + "/good") as good:
        await until(lambda: hub.statistics().subscribers == 2)
        await hub.publish("t", "a")
        assert (await bad.next()).data == "a"
        await hub.publish("t", "bad")
        await hub.publish("t", "b")
        assert [(await good.next()).data for _ in range(3)] == ["a", "bad", "b"]
        with pytest.raises(ClientPayloadError):
            await bad.rest()
        assert hub.statistics().subscribers == 1


@pytest.mark.parametrize("error", ERRORS)
async def test_an_exception_in_an_observer_ends_no_stream(serve, session, error):
    def observer(fact):
        raise error("no observation")

    async def ready(channel, context):
        await channel.put("a")
        channel.close()

    app = web.Application()
    setup(app, observer=observer)
    app.router.add_get("/", as_handler(start_event_stream(ready)))
    server = await serve(app)
    for _ in range(2):
        async with open_stream(session, server.url) as stream:
            assert [event.data for event in await stream.rest()] == ["a"]


@pytest.mark.parametrize("error", ERRORS)
async def test_an_exception_while_shutting_down_a_stream_does_not_affect_other_streams(serve, session, error):
    contexts = []

    async def ready(channel, context):
        contexts.append(context)
        await channel.wait_closed()

    app = web.Application()
    setup(app, drain=Drain(farewell=Event("bye"), timeout=5))
    app.router.add_get("/", as_handler(start_event_stream(ready)))
    server = await serve(app)
    async with open_stream(session, server.url), open_stream(session, server.url) as other:
        await until(lambda: len(contexts) == 2)
        for context in contexts:  # the drain iterates over a set, in any order
            stream, errors = context.stream, iter([error("no farewell")])
            stream._settings = Retry(stream._settings, errors if context is contexts[0] else iter([]))
        stop = asyncio.create_task(server.stop())
        assert (await within(other.response.content.read())).endswith(b"data: bye\n\n")
        await within(stop)
        assert {context.stream.reason for context in contexts} == {CloseReason.SHUTDOWN}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("method", ["qsize", "empty", "get_nowait"])
async def test_the_drain_ends_all_streams_if_the_queue_of_one_raises(serve, session, error, method):
    broken = failing_queue(method, error)
    app, channels = application_with(broken)
    setup(app, drain=Drain(farewell=Event("bye"), timeout=5))
    server = await serve(app)
    async with open_stream(session, server.url + "/bad"), open_stream(session, server.url + "/good") as good:
        await until(lambda: len(channels) == 2)
        broken.broken = True
        await within(server.stop())
        assert (await within(good.response.content.read())).endswith(b"data: bye\n\n")
        assert all(channel.reason is not None for channel in channels)


@pytest.mark.parametrize("error", ERRORS)
async def test_statistics_are_available_if_the_queue_of_the_stream_raises(serve, session, error):
    broken = failing_queue("qsize", error)
    contexts = []

    async def ready(channel, context):
        contexts.append(context)
        await channel.wait_closed()

    app = web.Application()
    app.router.add_get("/", as_handler(start_event_stream(ready, buffer=lambda: broken(10))))
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        await until(lambda: contexts)
        broken.broken = True
        assert contexts[0].stream.statistics().buffered == 0
        with pytest.raises(ClientPayloadError):
            await stream.rest()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("method", ["qsize", "empty", "get_nowait"])
async def test_a_newer_stream_opens_if_the_queue_of_the_kicked_one_raises(serve, session, error, method):
    broken = failing_queue(method, error)
    app, opened = application_with(broken)
    setup(app, max_streams_per_key=1, key=lambda request: "one", on_limit="kick")
    server = await serve(app)
    async with open_stream(session, server.url + "/bad"):
        await until(lambda: opened)
        broken.broken = True
        async with open_stream(session, server.url + "/good") as good:
            await until(lambda: len(opened) == 2)
            assert opened[0].reason is not None
            opened[1].put_nowait("a")
            assert (await good.next()).data == "a"


class Retry:
    """Settings whose ``retry`` raises once."""

    def __init__(self, settings, errors):
        self._inner, self._errors = settings, errors

    def __getattr__(self, name):
        if name == "retry":
            for error in self._errors:
                raise error
        return getattr(self._inner, name)


@pytest.mark.parametrize("error", [*ERRORS, GeneratorExit])
async def test_an_exception_in_an_error_event_does_not_hide_the_producers(serve, session, caplog, error):
    def error_event(exception):
        raise error("no error event")

    async def ready(channel, context):
        raise LookupError("lost")

    app = web.Application()
    app.router.add_get("/", as_handler(start_event_stream(ready, error_event=error_event)))
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        with pytest.raises(ClientPayloadError):
            await stream.rest()
    await until(lambda: "LookupError" in caplog.text)
