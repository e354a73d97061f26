"""The pages whose streams are open, and the request that drops one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from aiohttp_interceptors import CloseReason, RequestContext, around

__all__ = ["PAGES", "drop", "droppable"]

PAGES = web.AppKey("pages", dict[str, RequestContext])  # by the name that each page gave itself


@around
async def droppable(context: RequestContext) -> AsyncIterator[None]:
    """Let ``drop`` find the stream that comes after, as long as it is open."""
    pages = context.request.app[PAGES]
    client = context.request.query.get("client") or str(context.execution_id)
    pages[client] = context
    try:
        yield
    finally:
        if pages.get(client) is context:  # the page may be back already, on a new stream
            del pages[client]


async def drop(request: web.Request) -> web.Response:
    """End the stream of one page. Its browser comes back by itself and says which event it saw last."""
    context = request.app[PAGES].get(request.query.get("client", ""))
    if context is None or context.stream is None:
        raise web.HTTPNotFound(text="no stream of that client is open\n")
    context.stream.end(CloseReason.KICKED)
    return web.Response(status=204)
