"""``request_id``: an ID for each request, from the client or new, in the context, the response and the log lines."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from .._checks import check_count, check_synchronous
from .._logging import logged_variable
from ..chain import ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_function, check_token

__all__ = ["REQUEST_ID", "request_id"]


REQUEST_ID = ContextKey[str]("request_id")
"""The ID of the request."""

_logged_request_id = logged_variable("request_id")


def _new_id() -> str:
    return uuid.uuid4().hex


def request_id(
    *,
    header: str = "X-Request-ID",
    accept: str | None = r"[A-Za-z0-9._~+/=:@-]+",
    max_length: int = 128,
    make: Callable[[], str] = _new_id,
) -> Interceptor[RequestContext]:
    """Make an interceptor that gives each request an ID.

    The ID is ``context[REQUEST_ID]``, a header of the response, and the value ``request_id`` of each line that is
    logged further in, also by the producer of a stream. An ID of the client is used if it matches ``accept`` and is not
    too long; otherwise it is ignored. Put this interceptor first.

    Args:
        header: Name of the request and response header.
        accept: A regular expression that the whole ID of a client must match. ``None`` ignores IDs of clients.
        max_length: Number of characters that the ID of a client may have.
        make: A plain function that makes a new ID. Default: a random UUID as 32 hexadecimal digits.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``header`` is not a name of a header, ``accept`` is not a regular expression, or ``max_length`` is
            less than 1.
    """
    check_token("header", header)
    check_count("max_length", max_length, 1)
    check_function("make", make)
    if accept is not None and not isinstance(accept, str):
        raise TypeError(f"accept is a regular expression, or None to ignore what clients send, not {accept!r}")
    try:
        pattern = None if accept is None else re.compile(accept)
    except re.error as error:
        raise ValueError(f"accept is a regular expression, not {accept!r}: {error}") from None

    def enter(context: RequestContext) -> None:
        sent = context.request.headers.get(header, "")
        accepted = pattern is not None and len(sent) <= max_length and pattern.fullmatch(sent) and sent.isprintable()
        chosen = sent if accepted and sent else check_synchronous(make(), f"make of request_id, {make!r},")
        context.response_headers[header] = chosen
        context[REQUEST_ID] = chosen
        context.bind(_logged_request_id, chosen)

    return Interceptor("request_id", enter)
