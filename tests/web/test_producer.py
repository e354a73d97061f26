from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from aiohttp_interceptors import CloseReason, EventChannel
from aiohttp_interceptors.web import producer as module
from aiohttp_interceptors.web.producer import Producer

CONTEXT = SimpleNamespace(request=SimpleNamespace(path="/"), execution_id="run 1")


class FakeStream:
    """A stream with a channel and without a connection."""

    def __init__(self):
        self.channel = EventChannel()

    @property
    def reason(self):
        return self.channel.reason

    @property
    def closed(self):
        return self.channel.closed

    @property
    def end_observed(self):
        return self.channel._end_observed

    def producer_failed(self):
        self.channel.close()


async def started(ready):
    """Start a producer and let it run until it waits."""
    stream = FakeStream()
    channel, producer = stream.channel, Producer(stream, CONTEXT)
    producer.start(ready, channel, CONTEXT)
    for _ in range(3):
        await asyncio.sleep(0)
    return channel, producer


async def test_a_plain_function_needs_no_task():
    before = asyncio.all_tasks()
    channel, producer = await started(lambda channel, context: channel.put_nowait("x"))
    assert asyncio.all_tasks() == before
    assert channel.buffered == 1
    assert producer.error is None


@pytest.mark.parametrize("kind", ["plain", "async", "future"])
async def test_an_exception_closes_the_channel_and_becomes_the_failure(kind, logged):
    """Events that were put before are still sent."""
    boom = ValueError("boom")

    def plain(channel, context):
        channel.put_nowait("x")
        raise boom

    async def later(channel, context):
        plain(channel, context)

    def future(channel, context):
        channel.put_nowait("x")
        made = asyncio.get_running_loop().create_future()
        made.set_exception(boom)
        return made

    channel, producer = await started({"plain": plain, "async": later, "future": future}[kind])
    assert channel.closed
    assert channel.reason is None
    assert channel.buffered == 1
    assert producer.error is boom
    assert producer.failure is boom
    assert kind in producer.name or kind == "async"
    assert logged == []


async def test_a_producer_that_cannot_observe_the_end_is_cancelled_and_may_clean_up(logged):
    """Only the producer is cancelled; a task that it shielded continues."""
    cleaned, work, finish = [], [], asyncio.Event()

    async def background():
        await finish.wait()
        return "done"

    async def ready(channel, context):
        work.append(asyncio.create_task(background()))
        try:
            await asyncio.shield(work[0])
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    channel, producer = await started(ready)
    channel.end(CloseReason.CLIENT_LEFT)
    await producer.finish(None, 0)
    assert cleaned == [True]
    assert not work[0].done()
    finish.set()
    assert await work[0] == "done"
    assert logged == []


async def test_a_producer_that_waits_on_its_channel_is_not_cancelled():
    ended = []

    async def ready(channel, context):
        reason = await channel.wait_closed()
        await asyncio.sleep(0)
        ended.append(reason)

    channel, producer = await started(ready)
    channel.end(CloseReason.CLIENT_LEFT)
    await producer.finish(None, 0)
    assert ended == [CloseReason.CLIENT_LEFT]


async def test_a_producer_that_ignores_cancellation_is_abandoned_with_a_warning(logged, monkeypatch):
    monkeypatch.setattr(module, "CLEANUP_TIMEOUT", 0.01)
    release = asyncio.Event()

    async def ready(channel, context):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    channel, producer = await started(ready)
    channel.end(CloseReason.CLIENT_LEFT)
    await producer.finish(None, 0)
    assert [line["event"] for line in logged] == ["stream_producer_ignores_its_end"]
    release.set()
    await producer._task


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_on_close_may_raise(kind, logged):
    def plain(context, reason):
        raise ValueError(str(reason))

    async def later(context, reason):
        plain(context, reason)

    channel, producer = await started(lambda channel, context: None)
    channel.end(CloseReason.KICKED)
    await producer.finish(plain if kind == "plain" else later, 0)
    assert [(line["event"], str(line["exc_info"])) for line in logged] == [("stream_on_close_failed", "kicked")]


async def test_finish_completes_while_being_cancelled_and_raises_the_cancellation_again():
    reasons, waits, release = [], asyncio.Event(), asyncio.Event()

    async def on_close(context, reason):
        waits.set()
        await release.wait()
        reasons.append(reason)

    channel, producer = await started(lambda channel, context: None)
    channel.end(CloseReason.SHUTDOWN)
    task = asyncio.create_task(producer.finish(on_close, 0))
    await waits.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reasons == [CloseReason.SHUTDOWN]


async def test_after_abort_neither_the_producer_nor_on_close_is_awaited():
    async def ready(channel, context):
        await asyncio.Event().wait()

    async def on_close(context, reason):
        await asyncio.Event().wait()

    channel, producer = await started(ready)
    channel.end(CloseReason.SHUTDOWN)
    task = asyncio.create_task(producer.finish(on_close, 0))
    await asyncio.sleep(0)
    producer.abort()
    producer.abort()
    await asyncio.wait_for(task, 10)
    assert producer._task.cancelled()
