"""Where a request says which event its client had last."""

from __future__ import annotations

from aiohttp import web

__all__ = ["last_event_id_of"]


def last_event_id_of(request: web.BaseRequest) -> str | None:
    """Return the id of the last event that a client had, as it was sent, or ``None``.

    It is the first of these that is not empty: the header ``Last-Event-ID``, which browsers send when they reconnect;
    the query's ``lastEventId``, in any case, to which polyfills that cannot send the header append theirs; and the
    query's ``last_event_id``, which the page gives with a first connection. Of several values the last one counts,
    because a client appends its own to the URL of the page.
    """
    header = request.headers.get("Last-Event-ID")
    if header or not request.query_string:
        return header or None
    appended = given = None
    for name, value in request.query.items():
        if value and name == "last_event_id":
            given = value
        elif value and name.lower() == "lasteventid":
            appended = value
    return appended or given
