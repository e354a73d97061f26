"""The context of a request: what came in, what goes out, and whether it has gone."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Token
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web import Response
from multidict import CIMultiDict

from ..chain.context import Context
from ..chain.failure import Failure
from ..errors import NoResponse
from ..observe.logs import logged_execution_id
from .commit import CommitGuard, FrozenHeaders, contexts, drop, seal
from .last_event_id import last_event_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .stream import Stream

__all__ = ["RequestContext"]

# These may be sent many times and each one counts; of any other header the staged ones take the place.
ADDED = frozenset({"set-cookie", "vary", "link", "www-authenticate", "server-timing"})


class RequestContext(Context):
    """A context with a request and its response.

    Attaching a response in ``enter`` ends the way in, as a raised ``web.HTTPException`` does: it is a response, not
    an error.
    """

    __slots__ = ("_logged", "_preparing", "_response", "_staged", "_writer", "request", "stream")

    request: web.Request

    def __init__(self, request: web.Request, /, *, execution_id: int | str | None = None) -> None:
        # What Context.__init__ does, written out: the call would be a tenth of what a chain costs a request.
        self._values = {}
        self._observers = self._suppressed = ()
        self._execution = None
        self.error: Failure | None = None
        self.execution_id: int | str = next(Context._serial) if execution_id is None else execution_id
        self.request = request
        self._writer = request.writer
        self._response: web.StreamResponse | None = None
        self._staged: CIMultiDict[str] | None = None
        self._preparing: web.StreamResponse | None = None
        self._logged: Token[int | str] | None = None
        self.stream: Stream | None = None
        """The event stream that this request has, once it is open."""

    @property
    def response(self) -> web.StreamResponse | None:
        """The response that is attached; attaching another one after commit is dropped and logged."""
        return self._response

    @response.setter
    def response(self, response: web.StreamResponse | None) -> None:
        if response is not None and not isinstance(response, web.StreamResponse):
            raise TypeError(f"context.response is a web.StreamResponse or None, not {response!r}")
        self._attach(response, "context.response =")
        if self._execution is not None:
            self._execution.alert = True  # the loop asks _complete

    @property
    def response_headers(self) -> CIMultiDict[str]:
        """Headers for whatever response is sent: staged here, merged into it when it goes.

        A staged header replaces one of its name, and ``Set-Cookie``, ``Vary``, ``Link`` and their like are added.
        After commit, what is staged here is dropped and logged.
        """
        if self.committed:
            return FrozenHeaders.of({} if self._response is None else self._response.headers, self)
        if self._staged is None:
            self._staged = CIMultiDict()
        return self._staged

    @property
    def committed(self) -> bool:
        """Whether the response head is on the wire; from then on the response cannot change."""
        return self._writer.output_size > 0

    @property
    def last_event_id(self) -> str | None:
        """The last event that a returning client has, or ``None`` if there is none, or it is no text.

        It is the header ``Last-Event-ID``, the query's ``lastEventId`` of a polyfill, or the query's ``last_event_id``,
        in this order: the last one is for a first connection that goes on from a page's state, and a client reconnects
        to the same URL. Source: WHATWG HTML 9.2.
        """
        given = last_event_id_of(self.request)
        return given if given and _is_text(given) else None

    def snapshot(self) -> dict[object, object]:
        """Return the values as they are now, and under ``response`` and ``response_headers`` what is to be sent."""
        values = super().snapshot()
        values["response"] = self._response
        values["response_headers"] = dict(self._staged or {})
        return values

    @staticmethod
    def of(request: web.BaseRequest) -> RequestContext | None:
        """Return the context of a request, or of a clone of it, while its chain runs."""
        return contexts.get(request.writer)

    def put_on_log_lines(self) -> None:
        """Have every line that this task logs tell the execution id. Twice is once."""
        if self._logged is None:
            self._logged = logged_execution_id.set(self.execution_id)

    def take_off_log_lines(self) -> None:
        """Undo that, in a task that will wait for long: a context variable costs each of them 120 bytes."""
        logged, self._logged = self._logged, None
        if logged is not None:
            with suppress(ValueError):  # a middleware has put what is inside of it into another task
                logged_execution_id.reset(logged)

    def register(self) -> None:
        """Be the context of the request until the chain is over."""
        contexts[self._writer] = self

    def stage_into(self, response: web.StreamResponse) -> None:
        """Merge what is staged into a response that is about to be sent."""
        self._preparing = response
        staged, self._staged = self._staged, None
        if not staged:
            return
        headers = response.headers
        for name in dict.fromkeys(key.lower() for key in staged):
            if name not in ADDED:
                headers.popall(name, None)
        headers.extend(staged)

    def unstage(self, headers: CIMultiDict[str] | None) -> None:
        """Stage again what was merged into a response that could not be sent after all."""
        self._staged, self._preparing = headers, None

    @property
    def staged(self) -> CIMultiDict[str] | None:
        """What is staged now, if anything is."""
        return self._staged

    def conclude(self) -> web.StreamResponse:
        """Return what aiohttp shall send, or raise it if it is an ``HTTPException``, which aiohttp wants raised.

        Raises ``NoResponse`` if there is none.
        """
        response = self._response
        if type(response) is Response and self._staged is None:  # mostly so
            return response
        if self.committed:
            return self._committed_response(None)
        if response is None:
            raise NoResponse(
                f"no interceptor attached a response to {self.request.method} {self.request.path}; "
                "set context.response in one of them, or put a handler at the end of the chain"
            )
        if self._execution is None:  # this was the outermost part of the chain
            self.stage_into(response)
        if isinstance(response, web.HTTPException):
            raise response
        return response

    def _copy_into(self, twin: Context) -> None:
        super()._copy_into(twin)
        if isinstance(twin, RequestContext):
            twin._writer = self._writer
            twin.request, twin._response, twin._preparing = self.request, self._response, self._preparing
            twin.stream = self.stream
            twin._staged = None if self._staged is None else self._staged.copy()

    def _continue(self, context: Context) -> None:
        super()._continue(context)
        self.register()

    def _release(self) -> None:
        self._execution = None
        contexts.pop(self._writer, None)

    def _invoke(self, handler: Callable[[web.Request], Awaitable[object]]) -> Awaitable[object]:
        return handler(self.request)

    def _receive(self, result: object) -> None:
        if type(result) is Response and self._writer.output_size == 0:  # mostly so, and far cheaper than the rest
            self._response = result
        elif isinstance(result, web.StreamResponse):
            self._attach(result, "return")
        elif self.committed:
            self._committed_response(None)
            drop(f"return {result!r}", self)
        else:
            name = "a handler" if self._execution is None else self._execution.where()[0]
            raise TypeError(f"{name} returned {result!r}; an aiohttp handler returns a response")

    def _attach(self, response: web.StreamResponse | None, attempted: str) -> None:
        """Take a response, unless another one is on the wire."""
        if self._writer.output_size == 0:
            self._response = response
        elif response is not self._committed_response(response):
            drop(f"{attempted} {response!r}", self)

    def _absorb(self, exception: Exception) -> bool:
        if not isinstance(exception, web.HTTPException):
            return False
        if self.committed:
            self._committed_response(None)
            drop(f"raise {exception!r}", self, exception)
        else:
            self._response = exception
        return True

    def _committed_response(self, candidate: web.StreamResponse | None) -> web.StreamResponse:
        """Find the response whose head is on the wire, which a handler may not have told us, and seal it."""
        if self._response is None or not self._response.prepared:
            known = (
                response for response in (candidate, self._preparing) if response is not None and response.prepared
            )
            self._response = next(known, None) or _AlreadySent()
            seal(self._response)
        return self._response

    def _complete(self) -> bool:
        return self._response is not None


def _is_text(value: str) -> bool:
    """Tell whether aiohttp could decode a header; bytes that are no UTF-8 become lone surrogates there."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


RequestContext._kind = RequestContext


class _AlreadySent(CommitGuard):
    """Stands for a committed response that its handler told nobody of: ends its body, and then the connection."""

    @property
    def prepared(self) -> bool:
        """Say that the head is on the wire."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send no second head."""
        self._writer = request.writer
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body that the handler began."""
        await self._writer.write_eof(data)
