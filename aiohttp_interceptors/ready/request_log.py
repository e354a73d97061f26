"""``request_log``: one structured log line for each request, and two for a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from aiohttp import hdrs, web

from .._checks import check_synchronous
from .._logging import log
from ..decorators import around
from ..interceptor import Interceptor
from ..web.commit import is_event_stream
from ..web.context import RequestContext
from ..web.request import route_of
from ._fields import check_flag, check_function

__all__ = ["request_log"]

SERVER_ERROR = 500


def request_log(
    *,
    paths: bool = False,
    ignore: Callable[[RequestContext], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Interceptor[RequestContext]:
    """Make an interceptor that logs each request when it is over, and each stream when it opens and when it has closed.

    The line ``request`` has ``method``, ``route`` (the template of the route, such as ``/users/{id}``, or ``None`` if
    no route matched), ``status``, ``seconds`` and, where it is known, ``bytes`` of the body. A stream has the line
    ``stream_request_opened`` with the seconds until its headers, and ``stream_request_closed`` with ``reason``,
    ``events``, ``bytes`` and the seconds that it was open.

    The level is INFO, and WARNING for a 5xx response, an exception (``error``) and a cancellation (``cancelled``). An
    exception that leaves this interceptor is status 500 unless the response is committed. Its traceback is logged by
    ``uncaught_exception`` or by aiohttp.

    Put this interceptor behind ``request_id`` and before all others.

    Args:
        paths: Whether the lines also have ``path``, the raw path without the query. It may contain personal data, and
            gives each URL a line of its own.
        ignore: A plain function of the context, called first, that returns whether a request is not logged.
        clock: A function that returns seconds, for tests.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
    """
    check_flag("paths", paths)
    if ignore is not None:
        check_function("ignore", ignore)
    check_function("clock", clock)

    async def request_log(context: RequestContext) -> AsyncIterator[None]:
        if ignore is not None and check_synchronous(ignore(context), f"ignore of request_log, {ignore!r},"):
            yield
            return
        line = _Line(context, clock, paths=paths)
        context.on_commit(line.committed)
        try:
            yield
        except web.HTTPException:
            line.close()  # it is the response
            raise
        except Exception as error:
            line.close(error=type(error).__name__)
            raise
        except BaseException:
            line.close(cancelled=True)
            raise
        line.close()

    return around(request_log)


class _Line:
    """What is logged of one request."""

    def __init__(self, context: RequestContext, clock: Callable[[], float], *, paths: bool) -> None:
        request = context.request
        self._context = context
        self._clock = clock
        self._started_at = clock()
        self._opened_at: float | None = None  # of a stream
        self._values: dict[str, object] = {"method": request.method, "route": route_of(request) or None}
        if paths:
            self._values["path"] = request.path
        self._values["execution_id"] = context.execution_id

    def committed(self, response: web.StreamResponse) -> None:
        """Log that a stream opens."""
        if is_event_stream(response) and self._context.request.method != hdrs.METH_HEAD:
            self._opened_at = self._clock()
            seconds = self._opened_at - self._started_at
            log.info("stream_request_opened", **self._values, status=response.status, seconds=_rounded(seconds))

    def close(self, *, error: str | None = None, cancelled: bool = False) -> None:
        """Log the end of the request."""
        context, values = self._context, self._values
        response = context.response
        aborted = not context.committed and (error is not None or cancelled)
        status = SERVER_ERROR if aborted and not cancelled else None if aborted or response is None else response.status
        started_at = self._started_at if self._opened_at is None else self._opened_at
        values |= {"status": status, "seconds": _rounded(self._clock() - started_at)}
        event = "request"
        if self._opened_at is not None and context.committed:
            event = "stream_request_closed"
            if context.stream is not None:
                statistics = context.stream.statistics()
                values |= {"reason": statistics.reason and str(statistics.reason)}
                values |= {"events": statistics.events, "bytes": statistics.bytes}
        elif not aborted and (size := _body_size(context.request, response)) is not None:
            values["bytes"] = size
        if error is not None:
            values["error"] = error
        if cancelled:
            values["cancelled"] = True
        failed = error is not None or cancelled or (status is not None and status >= SERVER_ERROR)
        (log.warning if failed else log.info)(event, **values)


def _body_size(request: web.Request, response: web.StreamResponse | None) -> int | None:
    """Return the bytes of a response's body, or ``None`` if its length is not announced."""
    if response is None or response.compression:
        return None
    return 0 if request.method == hdrs.METH_HEAD else response.content_length


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
