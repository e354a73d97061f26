"""The streams of the Hub's soak: each way to begin, to choose, and to be behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

from aiohttp import web
from hub_feed import CHANGING, TICK, Publisher
from routes import FAREWELL, Book

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

PARTS = 3  # of which a stream with a select function has one
SNAPSHOT = 3  # events
REPLAY = 20
STALL_TIMEOUT = 4.0
MAX_AGE = 4.0


def topics(context: RequestContext) -> list[str]:
    return context.request.query.getall("topic")


async def topics_later(context: RequestContext) -> list[str]:
    await asyncio.sleep(0)
    return topics(context)


def part(context: RequestContext, record: Record) -> bool:
    return int(record.event.data.split(" ", 1)[0]) % PARTS == int(context.request.query["part"])


def application(hubs: list[Hub], publisher: Publisher, book: Book) -> web.Application:
    """Make the application whose streams are broken."""

    async def state(hub: Hub, context: RequestContext) -> Snapshot:
        """Give a state that is older than the moment when it is sent."""
        end = hub.history.end
        await asyncio.sleep(random.uniform(0, TICK))
        events = [Event(f"{end} {number}", name="state") for number in range(SNAPSHOT)]
        return Snapshot(events, id=hub.history.id_of(end))

    async def change(hub: Hub, subscriber: Subscriber, context: RequestContext) -> None:
        """Take topics and give them back, in the event loop and from threads."""
        token = context.request.match_info["token"]
        chance, loop = random.Random(token), asyncio.get_running_loop()
        while True:
            await asyncio.sleep(chance.uniform(0, 1))
            topic = chance.choice(CHANGING)
            verb = "remove" if topic in subscriber.topics else "add"
            call: Callable[[str], None] = getattr(subscriber, verb)
            before = hub.history.end
            if chance.random() < 0.5:
                call(topic)
            else:
                await loop.run_in_executor(None, call, topic)
                await asyncio.sleep(0)  # what the thread left for the event loop was there before this
            publisher.change(token, verb, topic, before, hub.history.end)

    app = web.Application()
    setup(app, *hubs, drain=Drain(FAREWELL, spread=0.5, grace=0.5, timeout=3.0), observer=book.observe)
    for number, hub in enumerate(hubs):
        start = partial(start_topic_stream, hub, heartbeat=0.5, on_close=book.on_close, prime=True)
        kinds = {
            "plain": start(topics, retry=500),
            "unprimed": start(topics_later, prime=False, retry=500),
            "select": start(topics, select=part),
            "snapshot": start(topics_later, snapshot=partial(state, hub)),
            "close": start(topics, on_gap="close"),
            "conflate": start(topics, on_gap="conflate"),
            "replay": start(topics, replay=REPLAY),
            "change": start(topics, stream_ready=partial(change, hub)),
            "aged": start(topics, max_age=MAX_AGE),
            "stall": start(topics, stall_timeout=STALL_TIMEOUT),
        }
        for kind, interceptor in kinds.items():
            app.router.add_get(f"/{kind}/{number}/{{token}}", as_handler(interceptor))
    app.router.add_get("/options", options)
    return app


async def options(request: web.Request) -> web.Response:
    """Answer as the other server does to who asks whether it is there."""
    return web.json_response({"epoch": 0})
