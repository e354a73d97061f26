"""The streams of the Hub's soak test: each way to start, to select records, and to be too slow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

from aiohttp import web

from aiohttp_interceptors import (
    Drain,
    Event,
    Hub,
    Record,
    RequestContext,
    Snapshot,
    Subscriber,
    as_handler,
    setup,
    start_topic_stream,
)
from tests.soak.hub_publisher import CHANGING, INTERVAL, Publisher
from tests.soak.routes import FAREWELL, FactLog

PARTS = 3  # a stream with a select function receives one of these parts
SNAPSHOT = 3  # events
REPLAY = 20  # records
STALL_TIMEOUT = 4.0  # seconds
MAX_AGE = 4.0  # seconds


def topics(context: RequestContext) -> list[str]:
    return context.request.query.getall("topic")


async def topics_later(context: RequestContext) -> list[str]:
    await asyncio.sleep(0)
    return topics(context)


def select_part(context: RequestContext, record: Record) -> bool:
    return int(record.event.data.split(" ", 1)[0]) % PARTS == int(context.request.query["part"])


def application(hubs: list[Hub], publisher: Publisher, log: FactLog) -> web.Application:
    """Create the application whose streams are tested."""

    async def snapshot(hub: Hub, context: RequestContext) -> Snapshot:
        """Return a state that is older than the time when it is sent."""
        end = hub.history.end
        await asyncio.sleep(random.uniform(0, INTERVAL))
        events = [Event(f"{end} {number}", name="state") for number in range(SNAPSHOT)]
        return Snapshot(events, id=hub.history.id_of(end))

    async def change_topics(hub: Hub, subscriber: Subscriber, context: RequestContext) -> None:
        """Add and remove topics, in the event loop and from threads."""
        token = context.request.match_info["token"]
        rng, loop = random.Random(token), asyncio.get_running_loop()
        while True:
            await asyncio.sleep(rng.uniform(0, 1))
            topic = rng.choice(CHANGING)
            verb = "remove" if topic in subscriber.topics else "add"
            method: Callable[[str], None] = getattr(subscriber, verb)
            before = hub.history.end
            if rng.random() < 0.5:
                method(topic)
            else:
                await loop.run_in_executor(None, method, topic)
                await asyncio.sleep(0)  # the event loop runs what the thread has scheduled
            publisher.write_topic_change(token, verb, topic, before, hub.history.end)

    app = web.Application()
    setup(app, *hubs, drain=Drain(FAREWELL, spread=0.5, grace=0.5, timeout=3.0), observer=log.observe)
    for number, hub in enumerate(hubs):
        start = partial(start_topic_stream, hub, heartbeat=0.5, on_close=log.on_close, prime=True)
        routes = {
            "plain": start(topics, retry=500),
            "unprimed": start(topics_later, prime=False, retry=500),
            "select": start(topics, select=select_part),
            "snapshot": start(topics_later, snapshot=partial(snapshot, hub)),
            "close": start(topics, on_gap="close"),
            "conflate": start(topics, on_gap="conflate"),
            "replay": start(topics, replay=REPLAY),
            "change": start(topics, stream_ready=partial(change_topics, hub)),
            "aged": start(topics, max_age=MAX_AGE),
            "stall": start(topics, stall_timeout=STALL_TIMEOUT),
        }
        for route, interceptor in routes.items():
            app.router.add_get(f"/{route}/{number}/{{token}}", as_handler(interceptor))
    app.router.add_get("/options", options)
    return app


async def options(request: web.Request) -> web.Response:
    """Respond like the other server when the test waits for the start."""
    return web.json_response({"epoch": 0})
