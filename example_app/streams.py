"""The two event streams of the machine's page: samples of the load, and a finite stream."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from aiohttp import web

from aiohttp_interceptors import ContextKey, Event, EventChannel, RequestContext, before

from .machine import Machine

__all__ = ["MACHINE", "SEED_INTERVAL", "WHOLE_SEED", "load", "resume_seed", "seed"]

MACHINE = web.AppKey("machine", Machine)
SEED_INTERVAL = web.AppKey("seed_interval", float)

SEEDS = 20  # events of the seed stream
LAST_SEED = ContextKey[int]("last_seed")  # the last ID that the page received, or 0
WHOLE_SEED = ContextKey[bool]("whole_seed")  # set when all events were sent


async def load(channel: EventChannel, context: RequestContext) -> None:
    """Send the history, or the samples after the page's last event ID, and then each new sample."""
    machine = context.request.app[MACHINE]
    number = machine.number_of(context.last_event_id or "")
    while True:
        for sample in await machine.newer(number):
            # False means that the stream has ended: a disconnect, a drop, or a shutdown.
            if not await channel.put(Event.json(asdict(sample), "load", machine.id_of(sample))):
                return
            number = sample.number


@before
def resume_seed(context: RequestContext) -> None:
    """Read the page's last event ID. A page that received all events gets a 204, and its browser stops reconnecting."""
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
