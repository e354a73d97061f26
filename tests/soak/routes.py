"""The streams of the server: each kind of producer, queue, end and limit. All events are counted."""

from __future__ import annotations

import json
import socket
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import TextIO

from aiohttp import web

from aiohttp_interceptors import (
    STREAMS,
    CloseReason,
    Drain,
    Event,
    EventChannel,
    RequestContext,
    SlidingQueue,
    StopReconnecting,
    as_handler,
    before,
    dropped_event,
    event_stream,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.facts import StreamClosed, StreamFact, StreamOpened, StreamRefused
from tests.soak.feed import Feed, event_id, parse_id, text

STALL_TIMEOUT = 1.0  # seconds; for /hose only
MAX_AGE = 3.0  # seconds
BURST = 20  # events that /sliding puts each time the feed grows
SOCKET_OPTIONS = (18, 25) if sys.platform == "linux" else ()  # TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT; <linux/tcp.h>
FAREWELL = Event("the server stops", name="farewell")


class ProducerFailed(Exception):
    """The exception of /failing."""


class FactLog:
    """Writes what happens to each stream into a file. In memory it would look like a leak."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._accepted: Counter[str] = Counter()  # of open streams only
        self.slots_in_use: Callable[[], int] = int

    def accepted(self, context: RequestContext) -> None:
        """Count an event that the channel accepted."""
        self._accepted[context.request.path] += 1

    def on_close(self, context: RequestContext, reason: CloseReason) -> None:
        self._write(kind="on_close", path=context.request.path, reason=str(reason))

    def producer_failed(self, context: RequestContext) -> None:
        self._write(kind="producer_failed", path=context.request.path)

    def observe(self, fact: StreamFact) -> None:
        path = fact.path
        if isinstance(fact, StreamOpened):
            self._write(kind="opened", path=path, slots=self.slots_in_use())
        elif isinstance(fact, StreamRefused):
            self._write(kind="refused", path=path, status=fact.status)
        elif isinstance(fact, StreamClosed):
            self._write(
                kind="closed", path=path, reason=fact.reason, events=fact.events, bytes=fact.bytes,
                dropped=fact.dropped, accepted=self._accepted.pop(path, 0),
            )  # fmt: skip

    def total(self, name: str, value: object) -> None:
        self._write(kind=name, path="", value=value)

    def _write(self, **line: object) -> None:
        self._file.write(json.dumps(line) + "\n")


def application(feed: Feed, log: FactLog, max_streams: int, per_user: int) -> web.Application:
    """Create the application whose streams are tested."""

    def start_of(context: RequestContext) -> int:
        """Return the number after which a stream starts: 0 for a client of another server."""
        epoch, number = parse_id(context.last_event_id)
        if epoch == 0:
            return int(context.request.query.get("after", feed.newest))
        return number if epoch == feed.epoch else 0

    def event(number: int) -> Event:
        return Event(text(feed.epoch, number), id=event_id(feed.epoch, number))

    async def put(channel: EventChannel, context: RequestContext, number: int) -> bool:
        is_open = await channel.put(event(number))
        if is_open:
            log.accepted(context)
        return is_open

    async def plain(channel: EventChannel, context: RequestContext) -> None:
        number = start_of(context)
        while True:
            await feed.wait_beyond(number)
            number += 1
            if not await put(channel, context, number):
                return

    async def hose(channel: EventChannel, context: RequestContext) -> None:
        number = start_of(context)
        while await put(channel, context, number + 1):
            number += 1

    async def sliding(channel: EventChannel, context: RequestContext) -> None:
        number = start_of(context)
        while True:
            for _ in range(BURST):
                number += 1
                if not await put(channel, context, number):
                    return
            await feed.wait_for_more()

    async def failing(channel: EventChannel, context: RequestContext) -> None:
        number = start_of(context)
        for _ in range(int(context.request.query.get("count", 5))):
            number += 1
            if not await put(channel, context, number):
                return
        log.producer_failed(context)
        raise ProducerFailed

    @before
    def stop_at_the_end(context: RequestContext) -> None:
        if start_of(context) >= int(context.request.query["last"]):
            raise StopReconnecting

    async def finite(channel: EventChannel, context: RequestContext) -> None:
        number, last = start_of(context), int(context.request.query["last"])
        while number < last and await put(channel, context, number + 1):
            number += 1
            if number % 10 == 0:
                await feed.wait_for_more()
        channel.close()

    @event_stream(finite=True, on_close=log.on_close, heartbeat=0.5)
    async def generated(context: RequestContext) -> AsyncIterator[Event]:
        number, last = start_of(context), int(context.request.query["last"])
        while number < last:
            number += 1
            yield event(number)
            log.accepted(context)

    async def chat(channel: EventChannel, context: RequestContext) -> None:
        body = await context.request.read()
        if await channel.put(Event(f"{len(body)} {zlib.crc32(body)}", name="body")):
            log.accepted(context)
        await finite(channel, context)

    async def options(request: web.Request) -> web.Response:
        """Return the settings of the connection, which must be the same before and after a stream."""
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        return web.json_response(
            {
                "epoch": feed.epoch,
                "options": [sock.getsockopt(socket.IPPROTO_TCP, number) for number in SOCKET_OPTIONS],
                "limits": request.transport.get_write_buffer_limits(),
                "protocol": type(request.transport.get_protocol()).__name__,
            }
        )

    app = web.Application()
    setup(
        app,
        drain=Drain(FAREWELL, spread=0.5, grace=0.5, timeout=3.0),
        max_streams=max_streams,
        max_streams_per_key=per_user,
        key=lambda request: request.headers.get("X-User"),
        observer=log.observe,
    )
    log.slots_in_use = lambda: app[STREAMS]._limits.in_use
    get, on_close = app.router.add_get, {"on_close": log.on_close}
    get("/plain/{token}", as_handler(start_event_stream(plain, heartbeat=0.3, retry=500, **on_close)))
    get("/hose/{token}", as_handler(start_event_stream(hose, stall_timeout=STALL_TIMEOUT, heartbeat=0.5, **on_close)))
    get("/aged/{token}", as_handler(start_event_stream(plain, max_age=MAX_AGE, heartbeat=0.3, **on_close)))
    get("/failing/{token}", as_handler(start_event_stream(failing, error_event=Event("", name="failed"), **on_close)))
    get(
        "/finite/{token}",
        as_handler(stop_at_the_end, start_event_stream(finite, finite=True, heartbeat=0.3, **on_close)),
    )
    get("/strict/{token}", as_handler(start_event_stream(plain, strict=True, heartbeat=0.3, **on_close)))
    get("/generated/{token}", generated)
    get(
        "/sliding/{token}",
        as_handler(
            start_event_stream(
                sliding, buffer=lambda: SlidingQueue(10, notice=dropped_event), heartbeat=0.3, **on_close
            )
        ),
    )
    app.router.add_post("/chat/{token}", as_handler(start_event_stream(chat, finite=True, heartbeat=0.3, **on_close)))
    get("/options", options)
    return app
