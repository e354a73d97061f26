"""The context of a request: what came in, what goes out, and whether it has gone."""

from __future__ import annotations

import warnings
from contextlib import suppress
from contextvars import Token
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web import Response
from multidict import CIMultiDict

from .._logging import log, logged_execution_id
from ..chain import Context, Failure
from ..exceptions import NoResponse
from .commit import (
    CommitGuard,
    GuardedHeaders,
    StagedHeaders,
    contexts,
    drop,
    is_committed,
    is_framed,
    merge,
    seal,
    unfinished,
    unframed,
)
from .request import last_event_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.http_writer import StreamWriter

    from .stream import Stream

__all__ = ["RequestContext", "before_commit"]


class RequestContext(Context):
    """A context with a request and its response.

    Attaching a response in ``enter`` ends the way in, as a raised ``web.HTTPException`` does: it is a response, not
    an error. So does sending a whole one, with ``prepare`` and ``write_eof``.
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
        self._writer: StreamWriter = request.writer  # type: ignore[assignment]  # a cast would cost a call
        self._response: web.StreamResponse | None = None
        self._staged: StagedHeaders | None = None
        self._preparing: web.StreamResponse | None = None
        self._logged: Token[int | str] | None = None
        self.stream: Stream | None = None
        """The event stream that this request has, once it is open."""

    @property
    def response(self) -> web.StreamResponse | None:
        """The response that is attached; attaching another one after commit is dropped and logged."""
        response = self._response
        if response is not None and response.prepared and self.committed:
            seal(response)  # a stage may have prepared it after it was attached
        return response

    @response.setter
    def response(self, response: web.StreamResponse | None) -> None:
        if response is not None and not isinstance(response, web.StreamResponse):
            raise TypeError(f"context.response is a web.StreamResponse or None, not {response!r}")
        self._attach(response, "context.response =")
        if self._execution is not None:
            self._execution.note_completion()

    @property
    def response_headers(self) -> CIMultiDict[str]:
        """Headers for whatever response is sent: staged here, merged into it when it goes.

        A staged header replaces one of its name, and ``Set-Cookie``, ``Vary``, ``Link`` and their like are added.
        After commit, what is staged here is dropped and logged. So is, at any time, what frames a message or belongs
        to the connection (``Content-Length``, ``Transfer-Encoding``, ``Connection`` and their like), and for an event
        stream ``Content-Type`` and ``Content-Encoding``. A value with a line end raises ``ValueError``.
        """
        if self.committed:
            return GuardedHeaders.of({} if self._response is None else self._response.headers, self)
        if self._staged is None:
            self._staged = StagedHeaders()
        return self._staged

    @property
    def committed(self) -> bool:
        """Whether the response's final head was written; from then on the response cannot change.

        It holds for the request and so for each context of it: those of its clones, and those of a second attempt that
        a middleware further out makes. An informational response (100, 103) does not count.
        """
        return is_committed(self._writer) and not self._is_only_informed()

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
            with suppress(ValueError, RuntimeError):  # set in another task, or taken off by a copy of this one
                logged_execution_id.reset(logged)

    def stage_into(self, response: web.StreamResponse) -> None:
        """Merge what is staged into a response that is about to be sent."""
        self._preparing = response
        staged, self._staged = self._staged, None
        if staged:
            merge(staged, response, self)
        if staged is not None:
            staged.sent(self)

    def unstage(self, headers: StagedHeaders | None) -> None:
        """Stage again what was merged into a response that could not be sent after all."""
        self._staged, self._preparing = None if headers is None else headers.copy(), None

    def supersedes(self, attempted: str) -> bool:
        """Tell whether a response is committed, and if so log that another one was dropped for it."""
        if not self.committed:
            return False
        self._committed_response(None)
        drop(attempted, self)
        return True

    @property
    def staged(self) -> StagedHeaders | None:
        """What is staged now, if anything is."""
        return self._staged

    def conclude(self) -> web.StreamResponse:
        """Return what aiohttp shall send, or raise it if it is an ``HTTPException``, which aiohttp wants raised.

        Raises ``NoResponse`` if there is none.
        """
        response = self._response
        if type(response) is Response and self._staged is None:  # mostly so
            writer = self._writer
            try:
                if writer._headers_buf is None and not writer._headers_written:  # as is_committed, and far cheaper
                    return response
            except AttributeError:
                pass  # a test double
        if self.committed:
            response = self._committed_response(None)
            if (
                not isinstance(response, web.Response)
                and getattr(self._writer, "length", None)
                and self.request.method != "HEAD"
            ):
                response.force_close()  # its body is shorter than its head says, and nothing may follow it
            if isinstance(response, web.HTTPException):
                raise response
            return response
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
            twin._staged = None if self._staged is None else self._staged.copy()

    def _continue(self, context: Context) -> None:
        super()._continue(context)
        execution, own = context._execution, self._execution
        if isinstance(context, RequestContext) and execution is not None and execution.stage == "enter":
            unset = self._response is None or self._response is execution.completed_before
            if unset and context._response is not None and not (own is not None and own.completed_anew):
                self._response = context._response  # a refusal counts, whichever of the two it was attached to
        self._replace(context)

    def _resume(self, context: Context) -> None:
        super()._resume(context)
        self._replace(context)

    def _replace(self, context: Context) -> None:
        """Be the context of the request if the other one was; a copy that is executed by itself is not."""
        if contexts.get(self._writer) is context:
            contexts[self._writer] = self

    def _begin(self) -> None:
        self.error, self._suppressed = None, ()
        own = self._execution
        if own is not None and own.is_copy:
            return  # it may outlast the request's chain, and a second attempt of the request is none of its business
        if contexts.setdefault(self._writer, self) is self and self._logged is None:
            # As put_on_log_lines. Nothing is put back when the chain is over: aiohttp gives each request a task.
            self._logged = logged_execution_id.set(self.execution_id)

    def _release(self) -> None:
        self._execution = None
        registered = contexts.pop(self._writer, None)
        if registered is not self and registered is not None:  # this one was a copy, executed by itself
            contexts[self._writer] = registered

    def _invoke(self, handler: Callable[[web.Request], Awaitable[object]]) -> Awaitable[object]:
        return handler(self.request)

    def _receive(self, result: object) -> None:
        writer = self._writer
        try:
            if type(result) is Response and writer._headers_buf is None and not writer._headers_written:  # mostly so
                self._response = result
                return
        except AttributeError:
            pass  # a test double
        if isinstance(result, web.StreamResponse):
            if isinstance(result, web.HTTPException):
                warnings.warn(_RETURNED, DeprecationWarning, stacklevel=2)
            self._attach(result, "return")
        elif not self.supersedes(f"return {result!r}"):
            name = "a handler" if self._execution is None else self._execution.where()[0]
            raise TypeError(f"{name} returned {result!r}; an aiohttp handler returns a response")

    def _attach(self, response: web.StreamResponse | None, attempted: str) -> None:
        """Take a response, unless another one is on the wire."""
        if not self.committed:
            self._response = response
        elif response is not self._committed_response(response) and not getattr(response, "superseded", False):
            drop(f"{attempted} {response!r}", self)

    def _handled(self, failure: Failure) -> None:
        """Log what a stream's producer raised: an ``error`` stage has handled it, so that aiohttp will not."""
        stream = self.stream
        if stream is not None and any(stream.failed_with(one.exception) for one in (failure, *self._suppressed)):
            stream.log_failure()

    def _absorb(self, exception: Exception) -> bool:
        if not isinstance(exception, web.HTTPException):
            self._note_unfinished()
            return False
        if self.committed:
            if self._committed_response(exception) is not exception:
                self._note_unfinished()
                drop(f"raise {exception!r}", self, exception)
        else:
            self._response = exception
            if self._execution is not None:
                self._execution.completed_anew = True
        return True

    def _is_only_informed(self) -> bool:
        """Tell whether the head that was written is surely an informational one.

        aiohttp forgets a head once it is sent. Where ``setup(app)`` was called we hear of each final one.
        """
        writer = self._writer
        if is_framed(writer) or getattr(writer, "_headers_buf", None) is not None or getattr(writer, "_eof", False):
            return False
        hooked = any(before_commit in app.on_response_prepare for app in self.request.match_info.apps)
        return hooked and writer not in unframed

    def _note_unfinished(self) -> None:
        """Remember that a body failed half-way, if who wrote it has just raised; a ``leave`` stage did not write it."""
        writer = self._writer
        entering = self._execution is not None and self._execution.stage == "enter"
        open_body = getattr(writer, "_headers_written", None) is True and not getattr(writer, "_eof", False)
        if entering and open_body and self.committed:
            unfinished.add(writer)

    def _committed_response(self, candidate: web.StreamResponse | None) -> web.StreamResponse:
        """Find the response whose head was written, which a handler may not have told us, and seal it."""
        response = self._response
        if response is None or not response.prepared:
            lost = response
            known = (
                response
                for response in (candidate, self._preparing)
                if response is not None and response.prepared and not getattr(response, "superseded", False)
            )
            self._response = response = next(known, None) or _AlreadySent(self.request)
            if lost is not None and response is not candidate:
                drop(f"context.response = {lost!r}", self)
        if self._staged:
            self._lose_staged()
        seal(response)
        return response

    def _lose_staged(self) -> None:
        """Log headers that were staged before commit and that no response took."""
        staged, self._staged = self._staged, None
        log.warning(
            "staged_headers_lost",
            headers=list(staged or ()),
            path=self.request.path,
            execution_id=self.execution_id,
            hint="call setup(app), which stages them into responses that a handler prepares itself",
        )

    def _outcome(self) -> Exception | None:
        response = self._response
        return response if isinstance(response, web.HTTPException) else None

    def _completion(self) -> object:
        writer = self._writer
        try:
            return writer if writer._eof is True else self._response  # sent whole, attached or not
        except AttributeError:
            return self._response  # a test double


async def before_commit(request: web.Request, response: web.StreamResponse) -> None:
    """Merge what is staged into a response that goes out while its chain still runs."""
    if not is_framed(request.writer):
        unframed.add(request.writer)
    context = RequestContext.of(request)
    if context is not None:
        context.stage_into(response)


def _is_text(value: str) -> bool:
    """Tell whether aiohttp could decode a header; bytes that are no UTF-8 become lone surrogates there."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


RequestContext._kind = RequestContext


# aiohttp's words. It does not see that one was returned, because the chain raises it.
_RETURNED = (
    "returning HTTPException object is deprecated (#2415) and will be removed, please raise the exception instead"
)


class _AlreadySent(CommitGuard):
    """Stands for a committed response that its handler did not return: ends its body, and then the connection."""

    def __init__(self, request: web.Request) -> None:
        super().__init__()
        self._req = request
        self._payload_writer = request.writer
        self.head_sent = True
