"""Chat rooms: a line appears on every page that is open in its room, on all servers."""

from __future__ import annotations

import asyncio
import os
import re
import time
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex

from aiohttp import web

from aiohttp_interceptors import BrokerError, CloseReason, Event, Hub, RequestContext, Subscriber, after

from .pages import PAGES

__all__ = ["HUB", "SERVER", "STORE", "announce_counts", "announce_join", "announce_leave", "enter", "health"]
__all__ += ["logout", "owner", "say", "topic_of", "topics"]

HUB = web.AppKey("hub", Hub)
STORE = web.AppKey("store", str)  # what keeps the lines: the class of the broker, or memory
SERVER = os.environ.get("EXAMPLE_NODE") or token_hex(4)  # the name of this process among those that share the rooms
COUNT_INTERVAL = 5.0  # seconds between two announcements of the number of pages; presence.js expires them after 12
ROOM = re.compile(r"[a-z0-9-]{1,30}")
KEY = re.compile(r"[0-9a-zA-Z-]{1,64}")
SESSION = "session"  # a cookie
MAX_NAME = 30  # characters
MAX_TEXT = 500


def topic_of(request: web.Request) -> str:
    """Return the topic of the room that a request names.

    Input from a client is validated before it becomes a topic: a dot separates levels, and ``>`` is a wildcard.
    """
    room = request.query.get("room", "lobby").lower()
    if not ROOM.fullmatch(room):
        raise web.HTTPBadRequest(text="a room's name is 1 to 30 of the letters a to z, digits and hyphens\n")
    return f"rooms.{room}"


def topics(context: RequestContext) -> list[str]:
    """Return the topics of a page: its room, and its server."""
    return [topic_of(context.request), f"servers.{SERVER}"]


async def say(request: web.Request) -> web.Response:
    """Publish a line. The author's page receives it from the Hub too, so all pages show the same order."""
    form = await request.post()
    fields = form.get("name"), form.get("text"), form.get("key")
    name, text = (field.strip() if isinstance(field, str) else "" for field in fields[:2])  # a field may be a file
    if not (0 < len(name) <= MAX_NAME and 0 < len(text) <= MAX_TEXT):
        raise web.HTTPBadRequest(text=f"a name has 1 to {MAX_NAME} characters, and a line 1 to {MAX_TEXT}\n")
    key = fields[2] if isinstance(fields[2], str) and KEY.fullmatch(fields[2]) else None
    line = Event.json({"name": name, "text": text, "time": time.time()}, "line")
    try:
        # A page that received no response sends the line again with the same key, and it is stored once.
        await request.app[HUB].publish(topic_of(request), line, idempotency_key=key)
    except BrokerError as error:
        raise web.HTTPServiceUnavailable(text="the server cannot store messages at the moment, try again\n") from error
    return web.Response(status=204)


def owner(context: RequestContext) -> str | None:
    """Return whose a stream is: all pages of a browser belong together, whichever server they are connected to."""
    session = context.request.cookies.get(SESSION, "")
    # A hash: the broker stores owners and the inspector shows them, and the session itself would open its pages.
    return f"session:{sha256(session.encode()).hexdigest()}" if KEY.fullmatch(session) else None


@after
def enter(context: RequestContext) -> None:
    """Give a browser a session when it opens a room. A real application asks who it is first."""
    if owner(context) is None and context.response is not None:
        context.response.set_cookie(SESSION, token_hex(16), httponly=True, samesite="Lax")


async def logout(request: web.Request) -> web.Response:
    """Forget the session, and end all its streams, on all servers."""
    context = RequestContext.find(request)
    whose = None if context is None else owner(context)
    response = web.Response(status=204)
    response.del_cookie(SESSION)
    if whose is not None:
        await request.app[HUB].disconnect(whose, Event("signed out", "logout"))
    return response


async def health(request: web.Request) -> web.Response:
    """Answer a load balancer: 200 if the Hub is caught up with its broker, 503 otherwise."""
    ready = request.app[HUB].ready
    return web.json_response({"ready": ready, "server": SERVER}, status=200 if ready else 503)


async def announce_join(_: Subscriber, context: RequestContext) -> None:
    """Send the server's name and store to a new page, and the new number of pages to its room."""
    hub, store = context.request.app[HUB], context.request.app[STORE]
    await _publish(hub, f"servers.{SERVER}", Event.json({"name": SERVER, "store": store}, "server"))
    await _publish_count(hub, topic_of(context.request))


async def announce_leave(context: RequestContext, _: CloseReason) -> None:
    """Send the new number of pages to a room when a stream has ended."""
    await _publish_count(context.request.app[HUB], topic_of(context.request))


async def announce_counts(app: web.Application) -> None:
    """Send the number of this server's pages to their rooms periodically, for pages that opened on other servers."""
    while True:
        await asyncio.sleep(COUNT_INTERVAL)
        for room in {topic_of(page.request) for page in app[PAGES].values() if "/room" in page.request.path}:
            await _publish_count(app[HUB], room)


async def _publish_count(hub: Hub, room: str) -> None:
    await _publish(hub, room, Event.json({"server": SERVER, "count": hub.subscribers(room)}, "here"))


async def _publish(hub: Hub, topic: str, event: Event) -> None:
    """Publish an event that is not kept in the history, which is for lines only."""
    with suppress(BrokerError):  # the next announcement makes up for it
        await hub.publish(topic, event, ephemeral=True)
