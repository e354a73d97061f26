"""``problem_details``: errors as ``application/problem+json``. Source: RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import TypeAlias

from aiohttp import hdrs, web

from .._checks import check_synchronous
from .._logging import log
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_flag, check_function

__all__ = ["Problem", "problem_details"]


CONTENT_TYPE = "application/problem+json"
MEMBERS = ("type", "status", "title", "detail", "instance")
_ERRORS = range(400, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a client gets to know about an error. Source: RFC 9457, 3.

    Attributes:
        status: The HTTP status, 400 to 599.
        title: What kind of problem it is, the same for each occurrence. Default: the phrase of the status.
        type: A URI that identifies the kind of problem; ``about:blank`` if the status says it all.
        detail: What is wrong this time.
        instance: A URI that identifies this occurrence.
        extensions: Further members of the JSON object.
        headers: Further headers of the response, such as ``Retry-After``.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The status is not one of an error, or an extension has the name of another member.
    """

    status: int
    title: str | None = None
    type: str = "about:blank"
    detail: str | None = None
    instance: str | None = None
    extensions: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if isinstance(self.status, bool) or not isinstance(self.status, int):
            raise TypeError(f"status is a number such as 404, not {self.status!r}")
        if self.status not in _ERRORS:
            raise ValueError(f"status is that of an error, 400 to 599, not {self.status!r}")
        for name in ("title", "type", "detail", "instance"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "type")):
                raise TypeError(f"{name} is a str, not {value!r}")
        for name in ("extensions", "headers"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} is a mapping, not {getattr(self, name)!r}")
        if clash := sorted(set(self.extensions) & set(MEMBERS)):
            raise ValueError(f"the extension {clash[0]!r} has the name of a member; pass it as {clash[0]}=…")

    def encode(self) -> bytes:
        """Return the JSON object as UTF-8.

        Raises:
            TypeError: An extension is not a JSON value.
            ValueError: An extension has a number that is infinite or NaN.
        """
        members: dict[str, object] = {
            "type": self.type,
            "status": int(self.status),
            "title": self.title or _phrase(self.status),
            "detail": self.detail,
            "instance": self.instance,
        }
        present = {name: value for name, value in members.items() if value is not None}
        return json.dumps({**present, **self.extensions}, ensure_ascii=False, allow_nan=False).encode()


Table: TypeAlias = Mapping[type[Exception], int | Problem]
Describe: TypeAlias = Callable[[RequestContext, Exception], int | Problem | None]


def problem_details(
    table: Table | None = None, *, describe: Describe | None = None, unexpected: bool = False
) -> Interceptor[RequestContext]:
    """Make an interceptor that answers errors with ``application/problem+json``.

    An ``HTTPException`` with status 4xx or 5xx keeps its status, headers and cookies. Its reason is the title, and a
    text other than aiohttp's own is the detail. One with a content type other than ``text/plain`` stays as it is.

    Another exception is looked up: ``describe`` is asked first, then the table, by the class of the exception and its
    bases. Of the exception nothing is sent but what these return. One that is in neither is raised again, or with
    ``unexpected`` logged and answered with a 500 that says nothing.

    After commit, as in an open stream, nothing can be sent any more, and the exception is raised again.

    Put this interceptor in front of those whose errors it describes. Source: RFC 9457.

    Args:
        table: Statuses or ``Problem`` objects for classes of exceptions, such as ``{KeyError: 404}``.
        describe: A plain function of the context and the exception, which returns a status, a ``Problem``, or ``None``
            for an exception that it does not know.
        unexpected: Whether exceptions that neither knows are answered too.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A status is not one of an error.
    """
    problems = _checked_table({} if table is None else table)
    if describe is not None:
        check_function("describe", describe)
    check_flag("unexpected", unexpected)

    def described(context: RequestContext, exception: Exception) -> Problem | None:
        if describe is not None:
            problem = check_synchronous(describe(context, exception), f"describe of problem_details, {describe!r},")
            if problem is not None:
                return _problem(problem, "what describe returns")
        known = next((problems[kind] for kind in type(exception).__mro__ if kind in problems), None)
        if known is None and unexpected:
            log.exception("unexpected_exception", execution_id=context.execution_id, exc_info=exception)
            return Problem(status=500)
        return known

    def leave(context: RequestContext) -> None:
        response = context.response
        if isinstance(response, web.HTTPException) and response.status in _ERRORS and not context.committed:
            _describe_response(response)

    def error(context: RequestContext, exception: Exception) -> None:
        problem = None if context.committed else described(context, exception)
        if problem is None:
            raise exception
        context.response = web.Response(
            status=problem.status, body=problem.encode(), headers=problem.headers, content_type=CONTENT_TYPE
        )

    return Interceptor("problem_details", leave=leave, error=error)


def _checked_table(table: Table) -> dict[type, Problem]:
    if not isinstance(table, Mapping):
        raise TypeError(f"table is a mapping of exception types to statuses or Problems, not {table!r}")
    for kind in table:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"table has subclasses of Exception as keys, not {kind!r}")
        if issubclass(kind, web.HTTPException):
            raise TypeError(f"table has {kind!r}, which is a response already, and is described by itself")
    return {kind: _problem(value, f"table[{kind.__name__}]") for kind, value in table.items()}


def _problem(value: object, what: str) -> Problem:
    if isinstance(value, Problem):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a status or a Problem, not {value!r}")
    return Problem(status=value)


def _describe_response(response: web.HTTPException) -> None:
    """Replace the body of an ``HTTPException``, which stays the same object, with its headers and cookies."""
    if response.content_type != "text/plain" or response.empty_body:
        return
    text = (response.text or "").strip()
    detail = None if text in ("", f"{response.status}: {response.reason}") else text
    problem = Problem(status=response.status, title=response.reason or None, detail=detail)
    response.body = problem.encode()
    response.headers[hdrs.CONTENT_TYPE] = CONTENT_TYPE


def _phrase(status: int) -> str | None:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # a status without a name
        return None
