"""Commit: what holds once a response is committed, which means that its headers were sent.

aiohttp silently accepts changes to a committed response, and writes a second response into the body of the first.
Here a committed response drops every change, and logs it with the line that made it. The module also holds the headers
that interceptors stage before commit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from http.cookies import Morsel, SimpleCookie
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from weakref import WeakSet

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from .._checks import check_synchronous
from .._logging import log
from ..chain import Execution
from ..exceptions import ResponseCommitted
from ..interceptor import Stage

__all__ = [
    "FRAMING",
    "NO_COOKIES",
    "ActiveContext",
    "CommitGuard",
    "GuardedHeaders",
    "StagedHeaders",
    "active_contexts",
    "add_late_cookies",
    "call_on_commit",
    "cookie_lines",
    "freeze_response",
    "incomplete",
    "is_committed",
    "is_event_stream",
    "is_framed",
    "log_dropped_change",
    "merge_headers",
    "remove_framing_headers",
    "unframed",
]


# Headers that frame a message or belong to the connection (RFC 9112, 6; RFC 9110, 7.6.1). Only the response that is
# sent can set them.
FRAMING = frozenset(
    {"content-length", "transfer-encoding", "trailer", "connection", "keep-alive", "proxy-connection", "upgrade"}
)
# Headers that define how the client of an event stream reads the body.
CODING = frozenset({"content-encoding", "content-type"})
# Headers of which a response may have several. Staging one adds it; staging any other header replaces it.
ADDED = frozenset({"set-cookie", "vary", "link", "www-authenticate", "server-timing"})

NO_COOKIES: Mapping[str, str] = {}
_INFORMATIONAL = re.compile(rb"HTTP/\d\.\d 1(?!01)")  # 101 is final (RFC 9110, 15.2)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


OnCommit: TypeAlias = Callable[[web.StreamResponse], object]


# What commit means.


def is_committed(writer: AbstractStreamWriter) -> bool:
    """Return whether the final headers of a request's response were written, even if aiohttp still buffers them.

    A request and its clones share the writer. An informational response (100, 103) does not count, and neither do bytes
    written without ``write_headers``, because aiohttp's expect handlers send theirs so.
    """
    written = getattr(writer, "_headers_written", None)
    if not isinstance(written, bool):  # a test double
        size: object = getattr(writer, "output_size", 0)
        return isinstance(size, int) and size > 0
    buffered: bytes | None = getattr(writer, "_headers_buf", None)
    if buffered is not None:
        return not _INFORMATIONAL.match(buffered)
    return written or bool(getattr(writer, "_eof", False))


def is_framed(writer: AbstractStreamWriter) -> bool:
    """Return whether aiohttp has set a length or chunks, as it does with final headers that announce a body."""
    return bool(getattr(writer, "chunked", False)) or writer.length is not None


# The requests in progress, by their writer, which a request and its clones share.


class ActiveContext(Protocol):
    """The part of a ``RequestContext`` that this module reads."""

    execution_id: int | str
    request: web.Request
    _execution: Execution | None
    _response: web.StreamResponse | None
    _staged_headers: StagedHeaders | None


active_contexts: dict[AbstractStreamWriter, ActiveContext] = {}
"""The context of each request whose chain is running."""

incomplete: WeakSet[AbstractStreamWriter] = WeakSet()
"""Requests whose response body failed before its end, so that it must not be completed, by any context."""

unframed: WeakSet[AbstractStreamWriter] = WeakSet()
"""Requests whose final headers were written without a length or chunks, as for a WebSocket or a 204."""


# Logging of dropped changes.


def log_dropped_change(
    attempted: str, owner: ActiveContext | web.StreamResponse | None, cause: Exception | None = None
) -> None:
    """Log a change that a committed response dropped, with the traceback of the line that made it.

    Args:
        attempted: The change, as the line has it.
        owner: The context of the request, or the committed response.
        cause: An exception that was dropped, if that was the change.
    """
    context = _context_of(owner) if owner is None or isinstance(owner, web.StreamResponse) else owner
    interceptor, stage = (None, None) if context is None else _running_stage(context)
    error = cause or ResponseCommitted(f"{attempted}: the response headers were already sent, so this was dropped")
    if error.__traceback__ is None:
        error = error.with_traceback(_caller_traceback())
    log.exception(
        "change_after_commit_dropped",
        attempted=attempted,
        interceptor=interceptor,
        stage=stage,
        execution_id=None if context is None else context.execution_id,
        exc_info=error,
    )


def _context_of(response: web.StreamResponse | None) -> ActiveContext | None:
    """Find the context of a response. A search, so that open responses need no reference to their context."""
    return next((context for context in active_contexts.values() if context._response is response is not None), None)


def _running_stage(context: ActiveContext) -> tuple[str | None, Stage | None]:
    """Return the interceptor and the stage that run now. A copy runs none, but the request's own context may."""
    for candidate in (context, active_contexts.get(context.request.writer)):
        execution = None if candidate is None else candidate._execution
        if execution is not None and execution.started:
            return execution.current_stage()
    return None, None


def _caller_traceback() -> TracebackType | None:
    """Build the traceback that an exception raised by the change itself would have, from the stage inwards."""
    trace: TracebackType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("aiohttp_interceptors.chain", "aiohttp.", "asyncio.")):
            break
        if not module.startswith("aiohttp_interceptors.web."):
            trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return trace


# Mappings that drop changes after commit.


class GuardedHeaders(CIMultiDict[str]):
    """Headers of a response, or staged headers, that drop changes once they were sent."""

    __slots__ = ("_owner",)

    _owner: ActiveContext | web.StreamResponse | None  # whose headers these are; unset while they are only staged

    @classmethod
    def of(cls, headers: Mapping[str, str], owner: ActiveContext | web.StreamResponse) -> GuardedHeaders:
        """Copy the headers of a response, or those that a request has staged."""
        guarded = cls(headers)
        guarded._owner = owner
        return guarded

    def copy(self) -> CIMultiDict[str]:  # type: ignore[override]  # multidict says Self
        """Return a copy that can be changed."""
        return CIMultiDict(self)


class _FrozenCookies(SimpleCookie):
    """Cookies that were sent. Changes are dropped."""

    _owner: web.StreamResponse


class _FrozenMorsel(Morsel[str]):
    """One cookie that was sent. Changes are dropped."""

    _owner: web.StreamResponse


def _is_open(mapping: Any) -> bool:
    """Return whether a mapping can still change."""
    owner = getattr(mapping, "_owner", None)
    if isinstance(owner, CommitGuard):
        return not owner._headers_sent
    return owner is None and isinstance(mapping, GuardedHeaders)


def _guard_mutators(cls: type, label: str, names: str, readers: dict[str, Callable[..., Any]]) -> None:
    """Wrap methods of a mapping class so that they change nothing after commit.

    Args:
        cls: The class.
        label: What log lines call the mapping.
        names: Methods that return nothing, separated by spaces.
        readers: Methods that also return a value; after commit the function given here reads it instead.
    """
    for name in [*names.split(), *readers]:
        original: Callable[..., Any] = getattr(cls, name)

        def method(self: Any, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            if _is_open(self):
                return _original(self, *args, **kwargs)
            if not (_name == "setdefault" and args[0] in self):
                what = f"{label}[{self.key!r}]" if isinstance(self, Morsel) else label
                log_dropped_change(_format_call(what, _name, args, kwargs), getattr(self, "_owner", None))
            return readers[_name](self, *args, **kwargs) if _name in readers else None

        setattr(cls, name, method)


def _format_call(what: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Format a call as it looks in source code."""
    if name == "__setitem__":
        return f"{what}[{args[0]!r}] = {args[1]!r}"
    if name == "__delitem__":
        return f"del {what}[{args[0]!r}]"
    if name == "__ior__":
        return f"{what} |= {args[0]!r}"
    arguments = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
    return f"{what}.{name}({arguments})" if what else f"{name}({arguments})"


_MUTATORS = "__setitem__ __delitem__ clear update "
_READERS: dict[str, Callable[..., Any]] = {
    "popitem": lambda mapping: next(iter(mapping.items())),
    "setdefault": Mapping.get,
}
_MULTIDICT_READERS: dict[str, Callable[..., Any]] = {
    **_READERS,
    "pop": CIMultiDict.getone,
    "popone": CIMultiDict.getone,
    "popall": CIMultiDict.getall,
}
_DICT_READERS: dict[str, Callable[..., Any]] = {**_READERS, "pop": dict.get, "__ior__": lambda mapping, _: mapping}

_guard_mutators(GuardedHeaders, "headers", _MUTATORS + "add extend merge", _MULTIDICT_READERS)
_guard_mutators(_FrozenCookies, "cookies", _MUTATORS + "load", _DICT_READERS)
_guard_mutators(_FrozenMorsel, "cookies", _MUTATORS + "set", _DICT_READERS)


# Responses that drop changes after commit.


def _guarded_method(name: str) -> Any:
    """Make a method that calls the next class's method before commit, and is dropped after it."""

    def method(self: CommitGuard, *args: Any, **kwargs: Any) -> Any:
        if self._headers_sent:
            return log_dropped_change(_format_call("", name, args, kwargs), self)
        return getattr(super(CommitGuard, self), name)(*args, **kwargs)

    return method


def _guarded_property(name: str) -> Any:
    """Make a property whose setter is dropped after commit."""

    def read(self: CommitGuard) -> Any:
        value = getattr(super(CommitGuard, self), name)
        return bytes(value) if self._headers_sent and isinstance(value, bytearray) else value  # its length was sent

    def write(self: CommitGuard, value: Any) -> None:
        if self._headers_sent:
            log_dropped_change(f"{name} = {value!r}", self)
        else:  # super() cannot set a property
            getattr(web.Response if name in _BODY else web.StreamResponse, name).__set__(self, value)

    return property(read, write)


_BODY = ("body", "text")


class CommitGuard(web.StreamResponse):
    """A response that drops, after commit, every change of its status, headers and cookies.

    It comes before the response class that it guards: ``class Mine(CommitGuard, web.StreamResponse)``.
    """

    _headers_sent: bool = False
    _is_event_stream: bool = False
    _discarded: bool = False  # another response was committed before, so nothing of this one is sent

    if not TYPE_CHECKING:  # type checkers see the members of the guarded class
        set_status = _guarded_method("set_status")
        set_cookie = _guarded_method("set_cookie")
        del_cookie = _guarded_method("del_cookie")
        enable_compression = _guarded_method("enable_compression")
        enable_chunked_encoding = _guarded_method("enable_chunked_encoding")
        content_type = _guarded_property("content_type")
        charset = _guarded_property("charset")
        content_length = _guarded_property("content_length")
        last_modified = _guarded_property("last_modified")
        etag = _guarded_property("etag")

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers. After commit a copy that drops changes, made on access so that open streams hold none."""
        headers = super().headers
        return GuardedHeaders.of(headers, self) if self._headers_sent else headers

    @property
    def cookies(self) -> SimpleCookie:
        """The cookies. After commit they drop changes."""
        cookies = super().cookies
        if self._headers_sent:
            self._freeze_cookies()
        return cookies

    def _freeze_cookies(self) -> None:
        """Make the cookies drop changes in place, because code may hold them since before commit."""
        cookies = self._cookies
        if cookies is None or isinstance(cookies, _FrozenCookies):
            return
        cookies.__class__ = _FrozenCookies
        for mapping in (cookies, *cookies.values()):
            if mapping is not cookies:
                mapping.__class__ = _FrozenMorsel
            vars(mapping)["_owner"] = self

    if not TYPE_CHECKING:  # the parameters are those of the guarded class

        async def write_eof(self, *data: bytes) -> None:
            """End the body. If it is incomplete, raise, so that aiohttp closes the connection."""
            if self._payload_writer in incomplete:
                raise ClientConnectionResetError("the response body is incomplete and must not end as if it were whole")
            await super().write_eof(*data)


class _BodyGuard(CommitGuard):
    """The guard of a ``web.Response``, which also has a body."""

    if not TYPE_CHECKING:  # type checkers see the members of the guarded class
        body = _guarded_property("body")
        text = _guarded_property("text")


_guarded_classes: dict[type[web.StreamResponse], type[web.StreamResponse]] = {}  # one for each response class


def freeze_response(response: web.StreamResponse) -> None:
    """Make a committed response drop changes from now on. Idempotent.

    It stays the same object, because code may hold it. Only its class changes, to a subclass of the same name.
    """
    if isinstance(response, CommitGuard):
        if not response._headers_sent:
            response._headers_sent = True
    else:
        cls = type(response)
        if cls not in _guarded_classes:
            guard = _BodyGuard if issubclass(cls, web.Response) else CommitGuard
            members = {"_headers_sent": True, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
            _guarded_classes[cls] = type(cls.__name__, (guard, cls), members)
        response.__class__ = _guarded_classes[cls]
    if response._cookies is not None:
        cast("CommitGuard", response)._freeze_cookies()


# Headers that are staged before commit.


class StagedHeaders(GuardedHeaders):
    """Headers that are staged for the response. Framing headers are dropped and logged.

    A header with a control character such as CR or LF raises ``ValueError``, and one that is not text ``TypeError``:
    here rather than when the headers are written, because no response could be sent then.

    They also carry the functions of ``context.on_commit``, so that a request without any holds nothing for them.
    """

    __slots__ = ("_on_commit",)

    _on_commit: tuple[OnCommit, ...]  # unset if there are none

    @property
    def on_commit(self) -> tuple[OnCommit, ...]:
        """The functions to call when a response is committed, in the order in which they were added."""
        return getattr(self, "_on_commit", ())

    @on_commit.setter
    def on_commit(self, functions: tuple[OnCommit, ...]) -> None:
        self._on_commit = functions

    def __setitem__(self, name: str, value: str) -> None:
        if self._accepts(name, value):
            super().__setitem__(name, value)

    def add(self, name: str, value: str) -> None:
        """Add a header, also if there is one of its name."""
        if self._accepts(name, value):
            super().add(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Add a header unless there is one of its name."""
        return super().setdefault(name, default) if name in self or self._accepts(name, default) else default

    def extend(self, *args: Any, **kwargs: Any) -> None:
        """Add headers, also if there are some of their names."""
        super().extend(self._accepted(args, kwargs))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Replace the headers of these names."""
        super().update(self._accepted(args, kwargs))

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Add headers, except those of whose names there are some."""
        super().merge(self._accepted(args, kwargs))

    def copy(self) -> StagedHeaders:
        """Return a copy that can be changed."""
        copy = StagedHeaders(self)
        copy.on_commit = self.on_commit
        return copy

    def freeze(self, owner: ActiveContext) -> None:
        """Drop changes from now on, because the headers were merged into a response."""
        self._owner = owner

    def _accepted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict(*args, **kwargs)
        return CIMultiDict([item for item in headers.items() if self._accepts(*item)])

    def _accepts(self, name: str, value: str) -> bool:
        """Return whether a header can be staged. Raise ``TypeError`` or ``ValueError`` if it cannot be sent."""
        if not (type(value) is str and value.isprintable() and type(name) is str and name.isprintable()):
            _check_header(name, value)
        if not _is_framing(name):
            return True
        context = next((context for context in active_contexts.values() if context._staged_headers is self), None)
        _log_dropped_header(name, value, context, by_running_stage=True)
        return False


def merge_headers(staged: CIMultiDict[str], response: web.StreamResponse, context: ActiveContext) -> None:
    """Merge staged headers into a response that is about to be sent."""
    headers = response._headers
    owned = CODING if is_event_stream(response) else frozenset()
    for name in {key.lower(): key for key in staged}.values():
        if name.lower() in owned or _is_framing(name):  # a framing header comes from a copy of the staged ones
            for value in staged.popall(name):
                if headers.get(name) != value:
                    _log_dropped_header(name, value, context)
        elif name.lower() not in ADDED:
            headers.popall(name, None)
    for item in staged.items():
        _check_header(*item)
    headers.extend(staged)


def call_on_commit(staged: StagedHeaders, response: web.StreamResponse) -> None:
    """Call the functions that wait for the commit. Raises what they raise."""
    for function in staged.on_commit:
        check_synchronous(function(response), f"the function {function!r} of on_commit")


def cookie_lines(response: web.StreamResponse) -> Mapping[str, str]:
    """Return the ``Set-Cookie`` values of a response's cookies, by name."""
    cookies = response._cookies
    return {name: cookie.output(header="")[1:] for name, cookie in cookies.items()} if cookies else NO_COOKIES


def add_late_cookies(response: web.StreamResponse, written: Mapping[str, str]) -> None:
    """Write the cookies that were set since ``written``, which aiohttp has made headers of, into the headers.

    aiohttp does that before it calls ``on_response_prepare``, and loses silently what is set there.
    """
    lines = cookie_lines(response)
    if lines is NO_COOKIES or lines == written:
        return
    headers = response._headers
    replaced = [line for name, line in written.items() if lines.get(name, line) != line]
    if replaced:
        kept = [line for line in headers.popall(hdrs.SET_COOKIE, ()) if line not in replaced]
        headers.extend([(hdrs.SET_COOKIE, line) for line in kept])
    headers.extend([(hdrs.SET_COOKIE, line) for name, line in lines.items() if written.get(name) != line])


def remove_framing_headers(
    headers: CIMultiDict[str], context: ActiveContext | None, names: Iterable[str] = FRAMING
) -> None:
    """Remove from the headers of an event stream, and log, those that contradict how its body is sent."""
    for name in names:
        if name in headers:
            for value in headers.popall(name):
                _log_dropped_header(name, value, context)


def _is_framing(name: str) -> bool:
    name = name.lower()
    return name in FRAMING or name.startswith("sec-websocket-")


def is_event_stream(response: web.StreamResponse) -> bool:
    """Return whether a response is an event stream, of this library or of a handler."""
    content_type = response._headers.get(hdrs.CONTENT_TYPE, "").lower()
    return getattr(response, "_is_event_stream", False) or content_type.startswith("text/event-stream")


def _check_header(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header's name and value are str, not {name!r}: {value!r}")
    line = f"{name}: {value}"
    if _CONTROL.search(line) or any("\ud800" <= character <= "\udfff" for character in line):
        raise ValueError(f"header {line!r} has a control character or a surrogate, which cannot be sent")


def _log_dropped_header(
    name: str, value: str, context: ActiveContext | None, *, by_running_stage: bool = False
) -> None:
    """Log a header that was dropped, with the stage that runs now if that one set it."""
    interceptor, stage = _running_stage(context) if context is not None and by_running_stage else (None, None)
    error = ValueError(
        f"{name}: {value} was dropped, because it contradicts how the response is framed or coded; "
        "to close the connection call response.force_close(), and set Content-Encoding and Content-Type on the response"
    )
    log.exception(
        "framing_header_dropped",
        header=name,
        value=value,
        interceptor=interceptor,
        stage=stage,
        path=None if context is None else context.request.path,
        execution_id=None if context is None else context.execution_id,
        exc_info=error.with_traceback(_caller_traceback()),
    )
