"""The context of a request: the request, the response and whether it is committed, and the headers staged for it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Token
from time import monotonic
from typing import Any, ClassVar, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from aiohttp.web import Response
from multidict import CIMultiDict

from .._logging import log, logged_execution_id
from ..chain import Context, Failure
from ..exceptions import NoResponse
from .commit import (
    CommitGuard,
    GuardedHeaders,
    StagedHeaders,
    active_contexts,
    add_late_cookies,
    call_on_commit,
    cookie_lines,
    freeze_response,
    incomplete,
    is_committed,
    is_framed,
    log_dropped_change,
    merge_headers,
    unframed,
)
from .request import last_event_id_of
from .stream import Stream

__all__ = ["RequestContext", "before_commit", "contexts"]


# aiohttp's own text: aiohttp does not see that the exception was returned, because the chain raises it.
_RETURNED = (
    "returning HTTPException object is deprecated (#2415) and will be removed, please raise the exception instead"
)


class RequestContext(Context):
    """The context of one aiohttp request: values, the request, and the response.

    No further interceptor is entered once a stage has attached a response, or has sent a complete one with ``prepare``
    and ``write_eof``. A raised ``web.HTTPException`` is a response, not an error: it is attached.

    Args:
        request: The request.
        execution_id: Identifies the request in logs and facts. A new number if ``None``.

    Attributes:
        request: The request. A stage may replace it with a clone, which the handler then gets.
        stream: The event stream of the response, or ``None`` until it is open.
    """

    __slots__ = (
        "_log_token",
        "_preparing",
        "_requested_at",
        "_response",
        "_staged_headers",
        "_writer",
        "request",
        "stream",
    )

    request: web.Request
    _notes_time: ClassVar[bool] = False  # only if a stream needs it, because each request would pay for it
    _requested_at: float

    def __init__(self, request: web.Request, /, *, execution_id: int | str | None = None) -> None:
        super().__init__(None, execution_id)
        self.request = request
        self._writer: StreamWriter = request.writer  # type: ignore[assignment]  # aiohttp names the abstract class
        self._response: web.StreamResponse | None = None
        self._staged_headers: StagedHeaders | None = None
        self._preparing: web.StreamResponse | None = None  # the response that staged headers were merged into last
        self._log_token: Token[int | str] | None = None
        if self._notes_time:
            self._requested_at = monotonic()
        self.stream: Stream | None = None

    @staticmethod
    def _note_time() -> None:
        """Note from now on when each request was received. Called when a stream is configured that needs it."""
        RequestContext._notes_time = True

    @property
    def _received_at(self) -> float:
        """When the first chain of the request began, in seconds of ``time.monotonic``; long ago if it is not known."""
        return getattr(self, "_requested_at", float("-inf"))

    @staticmethod
    def of(request: web.BaseRequest) -> RequestContext:
        """Return the context of a request, in a handler whose chain is running.

        Args:
            request: The request, or a clone of it.

        Raises:
            LookupError: None of its chains is running.
        """
        context = contexts.get(request.writer)
        if context is None:
            raise LookupError(
                f"no chain runs for {request!r}: put interceptor_middleware() into the application's middlewares, or "
                "wrap the handler with @intercept; RequestContext.find returns None instead"
            )
        return context

    @staticmethod
    def find(request: web.BaseRequest) -> RequestContext | None:
        """Return the context of a request, or ``None`` if none of its chains is running.

        Args:
            request: The request, or a clone of it.
        """
        return contexts.get(request.writer)

    @property
    def response(self) -> web.StreamResponse | None:
        """The response, or ``None``. Setting another one after commit is dropped and logged."""
        response = self._response
        if response is not None and response.prepared and self.committed:
            freeze_response(response)  # a stage may have prepared it after it was attached
        return response

    @response.setter
    def response(self, response: web.StreamResponse | None) -> None:
        if response is not None and not isinstance(response, web.StreamResponse):
            raise TypeError(f"context.response is a web.StreamResponse or None, not {response!r}")
        self._set_response(response, "context.response =")
        if self._execution is not None:
            self._execution.note_result()

    @property
    def response_headers(self) -> CIMultiDict[str]:
        """Staged headers, which are merged into the response when it is sent, whichever response that is.

        A staged header replaces the response's header of that name. ``Set-Cookie``, ``Vary``, ``Link``,
        ``WWW-Authenticate`` and ``Server-Timing`` are added to it.

        Headers that frame a message or belong to the connection (``Content-Length``, ``Transfer-Encoding``,
        ``Connection`` and the like) are dropped and logged. So are ``Content-Type`` and ``Content-Encoding`` of an
        event stream, and every header that is staged after commit.

        Raises:
            TypeError: When a header that is not text is staged.
            ValueError: When a header with a line end or another control character is staged.
        """
        if self.committed:
            return GuardedHeaders.of({} if self._response is None else self._response.headers, self)
        if self._staged_headers is None:
            self._staged_headers = StagedHeaders()
        return self._staged_headers

    def on_commit(self, function: Callable[[web.StreamResponse], object]) -> None:
        """Call a function with the response immediately before its headers are sent, after the staged ones are in it.

        The function sees the final status and headers, of a stream too, and can still change them. What it raises is
        raised where the response is sent. If that response cannot be sent, the function is called again with the
        next one. It is not called if an exception leaves the chain, because aiohttp then responds by itself. For a
        response that a handler prepares itself this requires ``setup(app)``, like staged headers.

        After commit the call is dropped and logged.

        Args:
            function: A plain function that takes the response.

        Raises:
            TypeError: The function is not a plain function.
        """
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"on_commit takes a plain function of the response, not {function!r}")
        if self._drop_if_committed(f"on_commit({function!r})"):
            return
        if self._staged_headers is None:
            self._staged_headers = StagedHeaders()
        self._staged_headers.on_commit += (function,)

    @property
    def committed(self) -> bool:
        """Whether the response is committed: its final headers were sent, and it cannot change any more.

        This is a property of the request, so all its contexts agree: those of clones, and that of a second attempt by
        a middleware further out. An informational response (100, 103) does not count.
        """
        return is_committed(self._writer) and not self._only_informational_sent()

    @property
    def last_event_id(self) -> str | None:
        """The ID of the last event that the client received, or ``None`` if it sends none or one that is not UTF-8.

        It is the first of these that is not empty: the header ``Last-Event-ID``, the query parameter ``lastEventId`` of
        polyfills, and the query parameter ``last_event_id``, with which a page resumes on its first connection.
        Source: WHATWG HTML 9.2.4.
        """
        event_id = last_event_id_of(self.request)
        return event_id if event_id and _is_text(event_id) else None

    def snapshot(self) -> dict[object, object]:
        """Return a copy of the values, with the response and the staged headers.

        Returns:
            The values by key, and under ``"response"`` and ``"response_headers"`` what will be sent.
        """
        values = super().snapshot()
        values["response"] = self._response
        values["response_headers"] = dict(self._staged_headers or {})
        return values

    # The execution ID in log lines.

    def _bind_log_context(self) -> None:
        """Add the execution ID to every line that this task logs. Idempotent."""
        if self._log_token is None:
            self._log_token = logged_execution_id.set(self.execution_id)

    def _unbind_log_context(self) -> None:
        """Undo ``_bind_log_context`` while a stream is open: a bound variable costs each of them 120 bytes."""
        token, self._log_token = self._log_token, None
        if token is not None:
            with suppress(ValueError, RuntimeError):  # set in another task, or reset by a copy of this context
                logged_execution_id.reset(token)

    # Staged headers.

    def _merge_staged_headers(self, response: web.StreamResponse) -> None:
        """Merge the staged headers into a response that is about to be sent."""
        self._preparing = response
        staged, self._staged_headers = self._staged_headers, None
        if staged:
            merge_headers(staged, response, self)
        if staged is not None:
            staged.freeze(self)
            if staged.on_commit:
                try:
                    call_on_commit(staged, response)
                except BaseException:
                    self._restore_staged_headers(staged)  # for the response to the error
                    raise

    def _restore_staged_headers(self, headers: StagedHeaders | None) -> None:
        """Stage headers again that were merged into a response which could not be sent."""
        self._staged_headers, self._preparing = None if headers is None else headers.copy(), None

    def _log_unsent_headers(self) -> None:
        """Log headers that were staged before commit, but not merged into the response that was sent."""
        staged, self._staged_headers = self._staged_headers, None
        log.warning(
            "staged_headers_lost",
            headers=list(staged or ()),
            path=self.request.path,
            execution_id=self.execution_id,
            hint="call setup(app), which merges them also into responses that a handler prepares itself",
        )

    # The response.

    def _set_response(self, response: web.StreamResponse | None, attempted: str) -> None:
        """Set the response unless another one is committed; that is logged, and ``attempted`` names the change."""
        if not self.committed:
            self._response = response
        elif response is not self._committed_response(response) and not getattr(response, "_discarded", False):
            log_dropped_change(f"{attempted} {response!r}", self)

    def _attach_committed(self, response: web.StreamResponse) -> None:
        """Attach a response whose headers were just sent."""
        if self._response is not None:
            self.response = response  # drops the other one
            return
        self._response = response
        if self._execution is not None:
            self._execution.note_result()

    def _drop_if_committed(self, attempted: str) -> bool:
        """Return whether a response is committed, and if so log that another one is dropped."""
        if not self.committed:
            return False
        self._committed_response(None)
        log_dropped_change(attempted, self)
        return True

    def _committed_response(self, candidate: web.StreamResponse | None) -> web.StreamResponse:
        """Freeze and return the response that was sent, which may be another one than a stage attached."""
        response = self._response
        if response is None or not response.prepared:
            never_sent = response
            sent = (
                response
                for response in (candidate, self._preparing)
                if response is not None and response.prepared and not getattr(response, "_discarded", False)
            )
            self._response = response = next(sent, None) or _UnknownResponse(self.request)
            if never_sent is not None and response is not candidate:
                log_dropped_change(f"context.response = {never_sent!r}", self)
        staged = self._staged_headers
        if staged is not None and (staged or staged.on_commit):
            self._log_unsent_headers()
        freeze_response(response)
        return response

    def _final_response(self) -> web.StreamResponse:
        """Return the response for aiohttp, or raise it if it is an ``HTTPException``, as aiohttp expects.

        Raises ``NoResponse`` if there is none.
        """
        response = self._response
        if type(response) is Response and self._staged_headers is None:  # the common case
            writer = self._writer
            try:
                if writer._headers_buf is None and not writer._headers_written:  # as is_committed, without the call
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
                response.force_close()  # the body is shorter than its Content-Length
            if isinstance(response, web.HTTPException):
                raise response
            return response
        if response is None:
            raise NoResponse(
                f"no interceptor attached a response to {self.request.method} {self.request.path}; "
                "set context.response in one of them, or put a handler at the end of the chain"
            )
        if self._execution is None:  # this was the outermost part of the chain
            self._merge_staged_headers(response)
        if isinstance(response, web.HTTPException):
            raise response
        return response

    def _only_informational_sent(self) -> bool:
        """Return whether the headers that were written are certainly informational ones.

        aiohttp does not remember which headers it sent. After ``setup(app)`` a hook sees all final ones.
        """
        writer = self._writer
        if is_framed(writer) or getattr(writer, "_headers_buf", None) is not None or getattr(writer, "_eof", False):
            return False
        hooked = any(before_commit in app.on_response_prepare for app in self.request.match_info.apps)
        return hooked and writer not in unframed

    def _mark_body_incomplete(self) -> None:
        """Mark a body that its writer began and then raised. A ``leave`` stage has not written it."""
        writer = self._writer
        entering = self._execution is not None and self._execution.stage == "enter"
        open_body = getattr(writer, "_headers_written", None) is True and not getattr(writer, "_eof", False)
        if entering and open_body and self.committed:
            incomplete.add(writer)

    # Hooks of the chain.

    def _copy_into(self, context: Context) -> None:
        super()._copy_into(context)
        if isinstance(context, RequestContext):
            context._staged_headers = None if self._staged_headers is None else self._staged_headers.copy()

    def _inherit_from(self, context: Context) -> None:
        super()._inherit_from(context)
        execution, own = context._execution, self._execution
        if self._notes_time and isinstance(context, RequestContext):
            self._requested_at = min(self._received_at, context._received_at)
        if isinstance(context, RequestContext) and execution is not None and execution.stage == "enter":
            unset = self._response is None or self._response is execution.initial_result
            if unset and context._response is not None and not (own is not None and own.has_new_result):
                self._response = context._response  # a response counts on either context
        self._take_registration(context)

    def _restore_from(self, context: Context) -> None:
        super()._restore_from(context)
        self._take_registration(context)

    def _take_registration(self, context: Context) -> None:
        """Become the request's context if the other one was. A copy that is executed separately is not."""
        if contexts.get(self._writer) is context:
            contexts[self._writer] = self

    def _start_execution(self) -> None:
        self.error: Failure | None = None
        self._suppressed = ()
        own = self._execution
        if own is not None and own.is_copy:
            return  # it may outlast the request's chain, and must not be found by a second attempt
        if contexts.setdefault(self._writer, self) is self and self._log_token is None:
            # As _bind_log_context. It is not unbound when the chain ends: aiohttp gives each request a task.
            self._log_token = logged_execution_id.set(self.execution_id)

    def _end_execution(self) -> None:
        self._execution = None
        if self.stream is not None:
            self.stream._release()
        registered = contexts.pop(self._writer, None)
        if registered is not self and registered is not None:  # this context is a copy that was executed separately
            contexts[self._writer] = registered

    def _call_handler(self, handler: Callable[[web.Request], Awaitable[object]]) -> Awaitable[object]:
        return handler(self.request)

    def _set_result(self, result: object) -> None:
        writer = self._writer
        try:  # the common case
            if type(result) is Response and writer._headers_buf is None and not writer._headers_written:
                self._response = result
                return
        except AttributeError:
            pass  # a test double
        if isinstance(result, web.StreamResponse):
            if isinstance(result, web.HTTPException):
                warnings.warn(_RETURNED, DeprecationWarning, stacklevel=2)
            self._set_response(result, "return")
        elif not self._drop_if_committed(f"return {result!r}"):
            name = "a handler" if self._execution is None else self._execution.current_stage()[0]
            raise TypeError(f"{name} returned {result!r}; an aiohttp handler returns a response")

    def _accept_exception(self, exception: Exception) -> bool:
        if not isinstance(exception, web.HTTPException):
            self._mark_body_incomplete()
            return False
        if self.committed:
            if self._committed_response(exception) is not exception:
                self._mark_body_incomplete()
                log_dropped_change(f"raise {exception!r}", self, exception)
        else:
            self._response = exception
            if self._execution is not None:
                self._execution.has_new_result = True
        return True

    def _on_handled(self, failure: Failure) -> None:
        """Log the exception of a stream's producer: aiohttp does not, because an ``error`` stage handled it."""
        stream = self.stream
        if stream is not None and any(stream._is_producer_error(one.exception) for one in (failure, *self._suppressed)):
            stream._log_producer_error()

    def _result_exception(self) -> Exception | None:
        response = self._response
        return response if isinstance(response, web.HTTPException) else None

    def _current_result(self) -> object:
        writer = self._writer
        try:
            return writer if writer._eof is True else self._response  # a complete response may not be attached
        except AttributeError:
            return self._response  # a test double


RequestContext._kind = RequestContext

contexts: dict[AbstractStreamWriter, RequestContext] = cast("Any", active_contexts)
"""The context of each request whose chain is running, by the writer that a request and its clones share."""


async def before_commit(request: web.Request, response: web.StreamResponse) -> None:
    """Merge staged headers into a response that a handler prepares itself. A handler of ``on_response_prepare``."""
    if not is_framed(request.writer):
        unframed.add(request.writer)
    context = RequestContext.find(request)
    if context is not None:
        written = cookie_lines(response)
        try:
            context._merge_staged_headers(response)
        except BaseException:  # another response follows, and aiohttp has framed this one already
            cast("StreamWriter", request.writer).chunked, request.writer.length = False, None
            raise
        add_late_cookies(response, written)


class _UnknownResponse(CommitGuard):
    """A placeholder for a response that was sent but not returned. It ends the body, and aiohttp the connection."""

    def __init__(self, request: web.Request) -> None:
        super().__init__()
        self._req = request
        self._payload_writer = request.writer
        self._headers_sent = True


def _is_text(value: str) -> bool:
    """Return whether aiohttp could decode a header as UTF-8; it turns other bytes into surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
