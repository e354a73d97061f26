"""The open streams by page, and the request that ends one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from aiohttp_interceptors import CloseReason, RequestContext, around

__all__ = ["PAGES", "drop", "droppable"]

PAGES = web.AppKey("pages", dict[str, RequestContext])  # by the client ID that each page chose


@around
async def droppable(context: RequestContext) -> AsyncIterator[None]:
    """Register the request in ``PAGES`` while its stream is open, so that ``drop`` can end it."""
    pages = context.request.app[PAGES]
    client = context.request.query.get("client") or str(context.execution_id)
    pages[client] = context
    try:
        yield
    finally:
        if pages.get(client) is context:  # the page may already have reconnected with a new stream
            del pages[client]


async def drop(request: web.Request) -> web.Response:
    """End the stream of one page. The browser reconnects and resumes after the last event it received."""
    context = request.app[PAGES].get(request.query.get("client", ""))
    if context is None or context.stream is None:
        raise web.HTTPNotFound(text="no stream of that client is open\n")
    context.stream.end(CloseReason.KICKED)
    return web.Response(status=204)
