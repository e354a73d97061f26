"""``transaction``: a transaction, or another resource, around the inner interceptors and the handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from aiohttp import web

from ..chain import ContextKey
from ..decorators import around
from ..interceptor import Interceptor
from ..web.commit import is_event_stream
from ..web.context import RequestContext
from ._fields import check_flag, check_function, check_key

__all__ = ["transaction"]


T = TypeVar("T")

BAD_REQUEST = 400


class _Rollback(Exception):
    """Ends a transaction that must not be committed, although nothing was raised."""


def transaction(
    key: ContextKey[T],
    begin: Callable[[RequestContext], AbstractAsyncContextManager[T]],
    *,
    streams: bool = False,
) -> Interceptor[RequestContext]:
    """Make an interceptor that begins a transaction, and commits it if the response has a status below 400.

    ``begin`` returns an async context manager, whose value is ``context[key]``. It is left without an exception if the
    response, raised or returned, has a status below 400. Otherwise an exception is raised in it, so that it rolls back:
    an exception of the inner part of the chain, an ``HTTPException``, a cancellation, or an exception of this module
    for a returned response with status 400 or more. Exceptions are raised again afterwards; the context manager cannot
    suppress them.

    The transaction is over before the headers of a plain response are sent, so that a commit that fails is an error
    response. The headers of a stream are sent before it: its status says nothing of the outcome, and it holds a
    connection to the database for as long as a page is open. It is therefore refused, before it opens, with a
    ``RuntimeError``. So is a WebSocket in an application with ``setup(app)``.

    Args:
        key: The key of what the context manager returns, such as a connection.
        begin: A plain function of the context that returns an async context manager.
        streams: Whether streams may be in the transaction, which then ends with the stream: it is committed unless the
            stream's producer raises or the chain is cancelled.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
    """
    check_key(key)
    check_function("begin", begin)
    check_flag("streams", streams)

    async def transaction(context: RequestContext) -> AsyncIterator[None]:
        if not streams:
            context.on_commit(_refuse_stream)
        raised: BaseException | None = None
        failure: BaseException | None = None
        try:
            async with begin(context) as context[key]:
                try:
                    yield
                except BaseException as error:  # noqa: BLE001  # raised again below, also if the manager suppresses it
                    raised = error
                failure = _failure_of(context.response if raised is None else raised)
                if failure is not None:
                    raise failure  # noqa: TRY301  # into the context manager
        except BaseException as error:
            if error is not failure:
                raise
        if raised is not None:
            raise raised

    return around(transaction)


def _failure_of(result: web.StreamResponse | BaseException | None) -> BaseException | None:
    """Return what to raise in the transaction, or ``None`` if it is to be committed."""
    if isinstance(result, web.StreamResponse) and result.status < BAD_REQUEST:
        return None
    return result if isinstance(result, BaseException) else _Rollback()


def _refuse_stream(response: web.StreamResponse) -> None:
    if is_event_stream(response) or isinstance(response, web.WebSocketResponse):
        raise RuntimeError(
            "a stream would hold its transaction open for as long as the client stays; read what it needs in a "
            "transaction of its own, or allow it with transaction(…, streams=True)"
        )
