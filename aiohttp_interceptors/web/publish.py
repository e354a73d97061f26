"""A request handler that publishes: for programs that have no Hub of their own."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from .._checks import check_seconds
from ..encoder import to_json
from ..exceptions import BrokerDown, BrokerRefused, EventTooLarge, OutcomeUnknown, TopicFinished
from ..hub.hub import Hub
from ..sse import Event
from .middleware import Handler
from .request import read_body

__all__ = ["publish_handler"]


_TEXTS = ("topic", "name", "key", "idempotency_key")
_FLAGS = ("ephemeral", "tombstone", "final")
_MEMBERS = (*_TEXTS, "data", *_FLAGS)
RETRY_AFTER = {"Retry-After": "1"}  # seconds


def publish_handler(hub: Hub, *, read_timeout: float | None = 60.0) -> Handler:
    """Make a handler that publishes the JSON body of a POST request. Put an authorising interceptor in front of it.

    ``app.router.add_post("/publish", as_handler(authorize, publish_handler(hub)))``

    The body is an object with ``topic`` and ``data``, and perhaps ``name``, ``key``, ``ephemeral``, ``tombstone`` and
    ``idempotency_key``, as for ``Hub.publish``. With ``"final": true`` the event finishes the topic, see
    ``Hub.finish``. If ``data`` is text it is the data of the event, and anything else is
    sent as JSON. The response is ``{"id": "…"}``, with status 201; the ID is ``null`` for an ephemeral event.

    A body that is wrong is answered with 400, one that does not arrive with 408, and an event that is too large, or a
    body of more than the application's ``client_max_size``, with 413. While the broker is down the answer is 503, and
    504 if it is not known whether the event was published: retry with the same ``idempotency_key``. An event that the
    broker refuses is answered with 422, and one of a finished topic with 409.

    Args:
        hub: The Hub to publish to.
        read_timeout: Seconds to wait for each piece of the body; ``None`` for no limit.

    Returns:
        The handler.

    Raises:
        TypeError: ``hub`` is not a Hub, or ``read_timeout`` is not a number.
        ValueError: ``read_timeout`` is not positive.
    """
    if not isinstance(hub, Hub):
        raise TypeError(f"hub is a Hub, not {hub!r}")
    check_seconds("read_timeout", read_timeout, "no limit")

    async def publish(request: web.Request) -> web.Response:
        await read_body(request, read_timeout)
        members = _read_members(await request.read())
        topic, data, name = members.pop("topic"), members.pop("data"), members.pop("name", None)
        try:
            event = Event(data if isinstance(data, str) else to_json(data), name)
            publishing = hub.finish if members.pop("final", False) else hub.publish
            event_id = await publishing(topic, event, **members)
        except EventTooLarge as error:
            raise web.HTTPRequestEntityTooLarge(0, 0, text=f"{error}\n") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except BrokerDown as error:
            raise web.HTTPServiceUnavailable(headers=RETRY_AFTER, text="The broker is down.\n") from error
        except TopicFinished as error:
            raise web.HTTPConflict(text=f"{error}\n") from error
        except OutcomeUnknown as error:
            text = "It is not known whether the event was published. Retry with the same idempotency_key.\n"
            raise web.HTTPGatewayTimeout(headers=RETRY_AFTER, text=text) from error
        except BrokerRefused as error:
            raise web.HTTPUnprocessableEntity(text="The broker refused the event.\n") from error
        return web.json_response({"id": event_id}, status=201)

    return publish


def _read_members(content: bytes) -> dict[str, Any]:
    """Return the members of the body. Raises the response to a wrong one."""
    try:
        body = json.loads(content)  # its encoding is not a matter of the content type (RFC 8259, 8.1)
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="The body is not JSON.\n") from None
    if not isinstance(body, dict) or "topic" not in body or "data" not in body:
        raise web.HTTPBadRequest(text='The body is an object with "topic" and "data".\n')
    for name, value in body.items():
        if name not in _MEMBERS:
            raise web.HTTPBadRequest(text=f"{name!r} is not known; the members are {', '.join(_MEMBERS)}.\n")
        if name in _TEXTS and not (isinstance(value, str) or (value is None and name != "topic")):
            raise web.HTTPBadRequest(text=f"{name} is a string.\n")
        if name in _FLAGS and not isinstance(value, bool):
            raise web.HTTPBadRequest(text=f"{name} is true or false.\n")
    if body.get("final"):
        for name in ("ephemeral", "tombstone"):
            if body.pop(name, False):
                raise web.HTTPBadRequest(text=f"A final event is not {name}.\n")
    return body
