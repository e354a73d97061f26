"""The two event streams of the page, and the request that drops one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from aiohttp import web

from aiohttp_interceptors import CloseReason, ContextKey, Event, EventChannel, RequestContext, before

from .machine import Machine

__all__ = ["MACHINE", "PAGES", "SEED_INTERVAL", "WHOLE_SEED", "drop", "load", "resume_seed", "seed"]

MACHINE = web.AppKey("machine", Machine)
PAGES = web.AppKey("pages", dict[str, EventChannel])  # the load stream of each page that gave itself a name
SEED_INTERVAL = web.AppKey("seed_interval", float)

SEEDS = 20
LAST_SEED = ContextKey[int]("last_seed")  # the id that this page saw last, 0 for none
WHOLE_SEED = ContextKey[bool]("whole_seed")  # set once the page was sent all


async def load(channel: EventChannel, context: RequestContext) -> None:
    """Send the last minute, or what is newer than the page's last event id, and then each sample as it is taken."""
    machine = context.request.app[MACHINE]
    number = machine.number_of(context.last_event_id or "")
    with _droppable(channel, context):
        while True:
            for sample in await machine.newer(number):
                # False means that the stream is over: the page has gone, or it was dropped, or the server stops.
                if not await channel.put(Event.json(asdict(sample), "load", machine.id_of(sample))):
                    return
                number = sample.number


@contextmanager
def _droppable(channel: EventChannel, context: RequestContext) -> Iterator[None]:
    """Let ``drop`` find the channel by the name that the page gave itself."""
    pages = context.request.app[PAGES]
    client = context.request.query.get("client") or str(context.execution_id)
    pages[client] = channel
    try:
        yield
    finally:
        if pages.get(client) is channel:  # the page may be back already, on a new channel
            del pages[client]


async def drop(request: web.Request) -> web.Response:
    """End the load stream of one page. Its browser comes back by itself and says which event it saw last."""
    channel = request.app[PAGES].get(request.query.get("client", ""))
    if channel is None:
        raise web.HTTPNotFound(text="no stream of that client is open\n")
    channel.end(CloseReason.KICKED)
    return web.Response(status=204)


@before
def resume_seed(context: RequestContext) -> None:
    """Find out where the page is; one that has seen all is told 204, on which a browser stops coming back."""
    try:
        last = int(context.last_event_id or 0)
    except ValueError:
        last = 0
    if last >= SEEDS:
        raise web.HTTPNoContent
    context[LAST_SEED] = max(0, last)


async def seed(channel: EventChannel, context: RequestContext) -> None:
    """Send ``foo`` events, one per interval, and close the channel after the last one."""
    for number in range(context[LAST_SEED] + 1, SEEDS + 1):
        if not await channel.put(Event("bar", "foo", number)):
            return
        await asyncio.sleep(context.request.app[SEED_INTERVAL])
    context[WHOLE_SEED] = True
    channel.close()
