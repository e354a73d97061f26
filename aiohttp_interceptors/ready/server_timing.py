"""``server_timing``: tells the browser's developer tools where the time went. Source: W3C Server Timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from .._checks import check_synchronous
from ..chain import Context, ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_function, check_printable, check_token, quoted

__all__ = ["server_timing", "timing"]


class _Spans:
    """The spans of one request that are over, in the order in which they ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self.metrics: list[str] = []

    def add(self, name: str, seconds: float, description: str | None = None) -> None:
        text = f"{name};dur={round(seconds * 1000, 3):g}"
        self.metrics.append(text if description is None else f"{text};desc={quoted(description)}")


_SPANS = ContextKey[_Spans]("server_timing")


def server_timing(
    *,
    total: str = "total",
    when: Callable[[RequestContext], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Interceptor[RequestContext]:
    """Make an interceptor that sends a ``Server-Timing`` header, with the milliseconds until the headers are sent.

    Spans that were measured with ``timing`` and are over by then are in it too. For a stream the total is the time
    until it opens.

    Any page that may read the response sees the times. They can tell an attacker whether a user or a record exists:
    use ``when`` in production.

    Args:
        total: Name of the total.
        when: A plain function of the context, called first, that returns whether the response has the header. Default:
            always.
        clock: A function that returns seconds, for tests.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``total`` is not a token.
    """
    check_token("total", total)
    if when is not None:
        check_function("when", when)
    check_function("clock", clock)

    def enter(context: RequestContext) -> None:
        if when is not None and not check_synchronous(when(context), f"when of server_timing, {when!r},"):
            return
        spans, started_at = _Spans(clock), clock()
        context[_SPANS] = spans

        def committed(response: web.StreamResponse) -> None:
            header = _Spans(clock)
            header.add(total, clock() - started_at)
            response.headers.add("Server-Timing", ", ".join([*header.metrics, *spans.metrics]))

        context.on_commit(committed)

    return Interceptor("server_timing", enter)


@contextmanager
def timing(context: Context, name: str, description: str | None = None) -> Iterator[None]:
    """Measure a ``with`` block for the ``Server-Timing`` header.

    ``with timing(context, "db"):`` adds the span ``db``. A block that raises is measured too. Without
    ``server_timing`` in the chain it does nothing.

    Args:
        context: The context of the request.
        name: Name of the span.
        description: What the developer tools show instead of the name.

    Yields:
        Nothing.

    Raises:
        TypeError: ``name`` is not a ``str``.
        ValueError: ``name`` is not a token, or ``description`` is not printable ASCII.
    """
    check_token("name", name)
    if description is not None:
        check_printable("description", description)
    spans = context.get(_SPANS)
    if spans is None:
        yield
        return
    started_at = spans.clock()
    try:
        yield
    finally:
        spans.add(name, spans.clock() - started_at, description)
