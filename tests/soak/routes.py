"""The streams of the server: each kind of producer, queue, end and limit, and all events counted."""

from __future__ import annotations

import json
import socket
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import TextIO

from aiohttp import web
from feed import Feed, event_id, parse_id, text

from aiohttp_interceptors import (
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
from aiohttp_interceptors.web.app import STREAMS

STALL_TIMEOUT = 1.0  # seconds; for /hose only
MAX_AGE = 3.0
BURST = 20  # events that /sliding puts at each growth of the history
OPTIONS = (18, 25) if sys.platform == "linux" else ()  # TCP_USER_TIMEOUT and TCP_NOTSENT_LOWAT, <linux/tcp.h>
FAREWELL = Event("the server stops", name="farewell")


class Broken(Exception):
    """What /failing raises."""


class Book:
    """Write down what happens to each stream, in a file: in memory it would look like a leak."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._accepted: Counter[str] = Counter()  # of open streams only
        self.places: Callable[[], int] = int
        """How many places under max_streams are taken."""

    def accept(self, context: RequestContext) -> None:
        """Count an event that the channel took."""
        self._accepted[context.request.path] += 1

    def on_close(self, context: RequestContext, reason: CloseReason) -> None:
        self._write(kind="on_close", path=context.request.path, reason=str(reason))

    def broke(self, context: RequestContext) -> None:
        self._write(kind="broke", path=context.request.path)

    def observe(self, fact: StreamFact) -> None:
        path = fact.path
        if isinstance(fact, StreamOpened):
            self._write(kind="opened", path=path, places=self.places())
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


def application(feed: Feed, book: Book, max_streams: int, per_user: int) -> web.Application:
    """Make the application whose streams are broken."""

    def first(context: RequestContext) -> int:
        """Return the number after which a stream goes on: 0 for who knows another server only."""
        epoch, number = parse_id(context.last_event_id)
        if epoch == 0:
            return int(context.request.query.get("after", feed.newest))
        return number if epoch == feed.epoch else 0

    def event(number: int) -> Event:
        return Event(text(feed.epoch, number), id=event_id(feed.epoch, number))

    async def put(channel: EventChannel, context: RequestContext, number: int) -> bool:
        taken = await channel.put(event(number))
        if taken:
            book.accept(context)
        return taken

    async def plain(channel: EventChannel, context: RequestContext) -> None:
        number = first(context)
        while True:
            await feed.beyond(number)
            number += 1
            if not await put(channel, context, number):
                return

    async def hose(channel: EventChannel, context: RequestContext) -> None:
        number = first(context)
        while await put(channel, context, number + 1):
            number += 1

    async def sliding(channel: EventChannel, context: RequestContext) -> None:
        number = first(context)
        while True:
            for _ in range(BURST):
                number += 1
                if not await put(channel, context, number):
                    return
            await feed.growth()

    async def failing(channel: EventChannel, context: RequestContext) -> None:
        number = first(context)
        for _ in range(int(context.request.query.get("count", 5))):
            number += 1
            if not await put(channel, context, number):
                return
        book.broke(context)
        raise Broken

    @before
    def done(context: RequestContext) -> None:
        if first(context) >= int(context.request.query["last"]):
            raise StopReconnecting

    async def finite(channel: EventChannel, context: RequestContext) -> None:
        number, last = first(context), int(context.request.query["last"])
        while number < last and await put(channel, context, number + 1):
            number += 1
            if number % 10 == 0:
                await feed.growth()
        channel.close()

    @event_stream(finite=True, on_close=book.on_close, heartbeat=0.5)
    async def generated(context: RequestContext) -> AsyncIterator[Event]:
        number, last = first(context), int(context.request.query["last"])
        while number < last:
            number += 1
            yield event(number)
            book.accept(context)

    async def chat(channel: EventChannel, context: RequestContext) -> None:
        body = await context.request.read()
        if await channel.put(Event(f"{len(body)} {zlib.crc32(body)}", name="body")):
            book.accept(context)
        await finite(channel, context)

    async def options(request: web.Request) -> web.Response:
        """Tell how the connection is set up: after a stream as before it."""
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        return web.json_response(
            {
                "epoch": feed.epoch,
                "options": [sock.getsockopt(socket.IPPROTO_TCP, number) for number in OPTIONS],
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
        observer=book.observe,
    )
    book.places = lambda: app[STREAMS]._limits.taken
    get = app.router.add_get
    told = {"on_close": book.on_close}
    get("/plain/{token}", as_handler(start_event_stream(plain, heartbeat=0.3, retry=500, **told)))
    get("/hose/{token}", as_handler(start_event_stream(hose, stall_timeout=STALL_TIMEOUT, heartbeat=0.5, **told)))
    get("/aged/{token}", as_handler(start_event_stream(plain, max_age=MAX_AGE, heartbeat=0.3, **told)))
    get("/failing/{token}", as_handler(start_event_stream(failing, error_event=Event("", name="failed"), **told)))
    get("/finite/{token}", as_handler(done, start_event_stream(finite, finite=True, heartbeat=0.3, **told)))
    get("/strict/{token}", as_handler(start_event_stream(plain, strict=True, heartbeat=0.3, **told)))
    get("/generated/{token}", generated)
    get(
        "/sliding/{token}",
        as_handler(
            start_event_stream(sliding, buffer=lambda: SlidingQueue(10, notice=dropped_event), heartbeat=0.3, **told)
        ),
    )
    app.router.add_post("/chat/{token}", as_handler(start_event_stream(chat, finite=True, heartbeat=0.3, **told)))
    get("/options", options)
    return app
