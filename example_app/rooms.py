"""Rooms: what is written in one appears on every page that is open in it."""

from __future__ import annotations

import re
import time

from aiohttp import web

from aiohttp_interceptors import CloseReason, Event, Hub, RequestContext, Subscriber

__all__ = ["HUB", "joined", "left", "say", "topic", "topic_of"]

HUB = web.AppKey("hub", Hub)
ROOM = re.compile(r"[a-z0-9-]{1,30}")
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


def topic(context: RequestContext) -> str:
    """Return what a page's stream is about."""
    return topic_of(context.request)


async def say(request: web.Request) -> web.Response:
    """Publish a line. Its author's page gets it as all the others do, so that they show the same in the same order."""
    form = await request.post()
    fields = form.get("name"), form.get("text")
    name, text = (field.strip() if isinstance(field, str) else "" for field in fields)  # it might be a file
    if not (0 < len(name) <= MAX_NAME and 0 < len(text) <= MAX_TEXT):
        raise web.HTTPBadRequest(text=f"a name has 1 to {MAX_NAME} characters, and a line 1 to {MAX_TEXT}\n")
    line = Event.json({"name": name, "text": text, "time": time.time()}, "line")
    await request.app[HUB].publish(topic_of(request), line)
    return web.Response(status=204)


async def joined(_: Subscriber, context: RequestContext) -> None:
    """Tell a room how many are in it, now that one more is."""
    await _tell_count(context)


async def left(context: RequestContext, _: CloseReason) -> None:
    """Tell a room how many are in it, now that one is not any more."""
    await _tell_count(context)


async def _tell_count(context: RequestContext) -> None:
    hub, room = context.request.app[HUB], topic(context)
    # Ephemeral: only who is here now wants to know, and the history is for lines.
    await hub.publish(room, Event(str(hub.subscribers(room)), "here"), ephemeral=True)
