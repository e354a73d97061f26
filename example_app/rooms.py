"""Rooms: what is written in one appears on every page that is open in it, whichever server has it."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from secrets import token_hex

from aiohttp import web

from aiohttp_interceptors import BrokerError, CloseReason, Event, Hub, RequestContext, Subscriber

from .pages import PAGES

__all__ = ["HUB", "SERVER", "health", "joined", "keep_telling", "left", "say", "topic_of", "topics"]

HUB = web.AppKey("hub", Hub)
SERVER = token_hex(4)  # this process, among those that have the same rooms
TELLING = 5.0  # seconds after which the others hear again how many are here; a page forgets who is silent for longer
ROOM = re.compile(r"[a-z0-9-]{1,30}")
KEY = re.compile(r"[0-9a-zA-Z-]{1,64}")
MAX_NAME = 30  # characters
MAX_TEXT = 500


def topic_of(request: web.Request) -> str:
    """Return the topic of the room that a request is about.

    A topic made of a client's words is checked: dots part topics, and the room ``>`` would be all rooms there are.
    """
    room = request.query.get("room", "lobby").lower()
    if not ROOM.fullmatch(room):
        raise web.HTTPBadRequest(text="a room's name is 1 to 30 of the letters a to z, digits and hyphens\n")
    return f"rooms.{room}"


def topics(context: RequestContext) -> list[str]:
    """Return what a page's stream is about: its room, and which server it is on."""
    return [topic_of(context.request), f"servers.{SERVER}"]


async def say(request: web.Request) -> web.Response:
    """Publish a line. Its author's page gets it as all the others do, so that they show the same in the same order."""
    form = await request.post()
    fields = form.get("name"), form.get("text"), form.get("key")
    name, text = (field.strip() if isinstance(field, str) else "" for field in fields[:2])  # it might be a file
    if not (0 < len(name) <= MAX_NAME and 0 < len(text) <= MAX_TEXT):
        raise web.HTTPBadRequest(text=f"a name has 1 to {MAX_NAME} characters, and a line 1 to {MAX_TEXT}\n")
    key = fields[2] if isinstance(fields[2], str) and KEY.fullmatch(fields[2]) else None
    line = Event.json({"name": name, "text": text, "time": time.time()}, "line")
    try:
        # A page that got no answer says the same line with the same key, and then it is there once.
        await request.app[HUB].publish(topic_of(request), line, idempotency_key=key)
    except BrokerError as error:
        raise web.HTTPServiceUnavailable(text="the server has lost its memory for now, try again\n") from error
    return web.Response(status=204)


async def health(request: web.Request) -> web.Response:
    """Answer a load balancer: 200 if all that was said is here and what is new comes, else 503."""
    ready = request.app[HUB].ready
    return web.json_response({"ready": ready, "server": SERVER}, status=200 if ready else 503)


async def joined(_: Subscriber, context: RequestContext) -> None:
    """Tell a page on which server it is, and a room how many are in it, now that one more is."""
    hub = context.request.app[HUB]
    await _tell(hub, f"servers.{SERVER}", Event(SERVER, "server"))
    await _tell_count(hub, topic_of(context.request))


async def left(context: RequestContext, _: CloseReason) -> None:
    """Tell a room how many are in it, now that one is not any more."""
    await _tell_count(context.request.app[HUB], topic_of(context.request))


async def keep_telling(app: web.Application) -> None:
    """Tell rooms how many of this server are in them, again and again: pages of other servers may have come later."""
    while True:
        await asyncio.sleep(TELLING)
        for room in {topic_of(page.request) for page in app[PAGES].values() if "/room" in page.request.path}:
            await _tell_count(app[HUB], room)


async def _tell_count(hub: Hub, room: str) -> None:
    await _tell(hub, room, Event.json({"server": SERVER, "count": hub.subscribers(room)}, "here"))


async def _tell(hub: Hub, topic: str, event: Event) -> None:
    """Publish what only those want to know who are here now: the history is for lines."""
    with suppress(BrokerError):  # then nobody hears anything, and what is said again will do
        await hub.publish(topic, event, ephemeral=True)
