"""What holds after commit: a response whose head was written drops every change, and logs who tried.

aiohttp accepts such changes in silence, and a second response it writes into the body of the first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from http.cookies import Morsel, SimpleCookie
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from .._logging import log
from ..exceptions import ResponseCommitted

if TYPE_CHECKING:
    from ..interceptor import Stage
    from .context import RequestContext

__all__ = [
    "FRAMING",
    "CommitGuard",
    "GuardedHeaders",
    "StagedHeaders",
    "contexts",
    "drop",
    "drop_framing",
    "is_committed",
    "is_framed",
    "merge",
    "offending_line",
    "running_stage",
    "seal",
    "unfinished",
    "unframed",
]


contexts: dict[AbstractStreamWriter, RequestContext] = {}
"""The context of each request whose chain runs, by what the request and its clones have in common."""

unfinished: WeakSet[AbstractStreamWriter] = WeakSet()
"""The requests whose body failed half-way: it must not be ended as if it were whole, whichever context ends it."""

unframed: WeakSet[AbstractStreamWriter] = WeakSet()
"""The requests whose final head was written without a length or chunks, as for a WebSocket or 204."""

_INFORMATIONAL = re.compile(rb"HTTP/\d\.\d 1(?!01)")  # 101 is final (RFC 9110, 15.2)


def is_committed(writer: AbstractStreamWriter) -> bool:
    """Tell whether the final head of a request's response was written, be it that aiohttp still buffers it.

    The writer belongs to the request and to all its clones. An informational head (100, 103) is none: bytes that were
    written without ``write_headers`` are taken for one, as aiohttp's own expect handlers write it.
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
    """Tell whether aiohttp has chosen how a body ends, which it does for a final head that can have a body."""
    return bool(getattr(writer, "chunked", False)) or writer.length is not None


def drop(attempted: str, committed: RequestContext | web.StreamResponse | None, cause: Exception | None = None) -> None:
    """Log, once and with the traceback of the offending line, a change that a committed response cannot take."""
    context = _context_of(committed) if committed is None or isinstance(committed, web.StreamResponse) else committed
    name, stage = (None, None) if context is None else running_stage(context)
    error = cause or ResponseCommitted(f"{attempted}: the head is on the wire, so the change was dropped")
    if error.__traceback__ is None:
        error = error.with_traceback(offending_line())
    log.exception(
        "change_after_commit_dropped",
        attempted=attempted,
        interceptor=name,
        stage=stage,
        execution_id=None if context is None else context.execution_id,
        exc_info=error,
    )


def running_stage(context: RequestContext) -> tuple[str | None, Stage | None]:
    """Name the interceptor and the stage that run now; a copy is in none, so it is asked of the request's context."""
    for candidate in (context, contexts.get(context._writer)):
        execution = None if candidate is None else candidate._execution
        if execution is not None and execution.cursor is not None:
            return execution.where()
    return None, None


def _context_of(response: web.StreamResponse | None) -> RequestContext | None:
    """Find whose response it is: so seldom that no response, while it is open, need remember it."""
    return next((context for context in contexts.values() if context._response is response is not None), None)


def offending_line() -> TracebackType | None:
    """Build the traceback that an exception raised by the change itself would have had, from the stage inwards."""
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


class GuardedHeaders(CIMultiDict[str]):
    """Headers of a response or of a request: once they were sent they drop what would change them."""

    __slots__ = ("_committed",)

    _committed: RequestContext | web.StreamResponse | None

    @classmethod
    def of(cls, headers: Mapping[str, str], committed: RequestContext | web.StreamResponse) -> GuardedHeaders:
        """Copy headers of a response, or of what a request had staged."""
        guarded = cls(headers)
        guarded._committed = committed
        return guarded

    def copy(self) -> CIMultiDict[str]:  # type: ignore[override]  # multidict says Self
        """Return a copy, which may change."""
        return CIMultiDict(self)


class _FrozenCookies(SimpleCookie):
    """The cookies that were sent: can be read as ever, and drops what would change them."""

    _committed: web.StreamResponse


class _FrozenMorsel(Morsel[str]):
    """One cookie that was sent."""

    _committed: web.StreamResponse


def _is_open(mapping: Any) -> bool:
    """Tell whether a mapping may still change."""
    committed = getattr(mapping, "_committed", None)
    if isinstance(committed, CommitGuard):
        return not committed.head_sent
    return committed is None and isinstance(mapping, GuardedHeaders)


def _freeze(kind: type, what: str, verbs: str, reads: dict[str, Callable[..., Any]]) -> None:
    """Have a mapping class drop these calls; those that also return something read it, and it stays."""
    for verb in [*verbs.split(), *reads]:
        change: Callable[..., Any] = getattr(kind, verb)

        def method(self: Any, *args: Any, _verb: str = verb, _change: Any = change, **values: Any) -> Any:
            if _is_open(self):
                return _change(self, *args, **values)
            if not (_verb == "setdefault" and args[0] in self):
                name = f"{what}[{self.key!r}]" if isinstance(self, Morsel) else what
                drop(_written(name, _verb, args, values), getattr(self, "_committed", None))
            return reads[_verb](self, *args, **values) if _verb in reads else None

        setattr(kind, verb, method)


def _written(what: str, verb: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    """Write a call as the offending line has it."""
    if verb == "__setitem__":
        return f"{what}[{args[0]!r}] = {args[1]!r}"
    if verb == "__delitem__":
        return f"del {what}[{args[0]!r}]"
    if verb == "__ior__":
        return f"{what} |= {args[0]!r}"
    arguments = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in values.items())])
    return f"{what}.{verb}({arguments})" if what else f"{verb}({arguments})"


_CHANGES = "__setitem__ __delitem__ clear update "
_ITEM: dict[str, Callable[..., Any]] = {
    "popitem": lambda mapping: next(iter(mapping.items())),
    "setdefault": Mapping.get,
}
_ONE: dict[str, Callable[..., Any]] = {
    "pop": CIMultiDict.getone,
    "popone": CIMultiDict.getone,
    "popall": CIMultiDict.getall,
}
_DICT: dict[str, Callable[..., Any]] = {**_ITEM, "pop": dict.get, "__ior__": lambda mapping, _: mapping}
_freeze(GuardedHeaders, "headers", _CHANGES + "add extend merge", {**_ITEM, **_ONE})
_freeze(_FrozenCookies, "cookies", _CHANGES + "load", _DICT)
_freeze(_FrozenMorsel, "cookies", _CHANGES + "set", _DICT)


def _guarded_method(name: str) -> Any:
    """Make a method that does what the next class's does until commit, and is dropped from then on."""

    def method(self: CommitGuard, *args: Any, **values: Any) -> Any:
        if self.head_sent:
            return drop(_written("", name, args, values), self)
        return getattr(super(CommitGuard, self), name)(*args, **values)

    return method


def _guarded_property(name: str) -> Any:
    """Make a property that can be read as ever, and whose setter is dropped after commit."""

    def read(self: CommitGuard) -> Any:
        value = getattr(super(CommitGuard, self), name)
        return bytes(value) if self.head_sent and isinstance(value, bytearray) else value  # a body's length was sent

    def write(self: CommitGuard, value: Any) -> None:
        if self.head_sent:
            drop(f"{name} = {value!r}", self)
        else:  # super() reads a property but does not set one
            getattr(web.Response if name in _BODY else web.StreamResponse, name).__set__(self, value)

    return property(read, write)


_BODY = ("body", "text")


class CommitGuard(web.StreamResponse):
    """A response that drops, after commit, every change of what was sent with its head.

    Comes before the response class whose methods it guards: ``class Mine(CommitGuard, web.StreamResponse)``.
    """

    head_sent: bool = False
    event_stream: bool = False
    superseded: bool = False  # it came after another one, so that none of it was sent

    if not TYPE_CHECKING:  # a type checker sees what the guarded class has
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
        """The headers; after commit a copy that drops changes, made when asked for so that open streams hold none."""
        headers = super().headers
        return GuardedHeaders.of(headers, self) if self.head_sent else headers

    @property
    def cookies(self) -> SimpleCookie:
        """The cookies; after commit they drop changes, and so does each of them."""
        cookies = super().cookies
        if self.head_sent:
            self.freeze_cookies()
        return cookies

    def freeze_cookies(self) -> None:
        """Have the cookies drop changes, also for code that kept them from before commit."""
        cookies = self._cookies
        if cookies is None or isinstance(cookies, _FrozenCookies):
            return
        cookies.__class__ = _FrozenCookies
        for mapping in (cookies, *cookies.values()):
            if mapping is not cookies:
                mapping.__class__ = _FrozenMorsel
            vars(mapping)["_committed"] = self

    if not TYPE_CHECKING:  # the parameters are those of the guarded class

        async def write_eof(self, *data: bytes) -> None:
            """End the body; raise for aiohttp to close the connection if it failed half-way."""
            if self._payload_writer in unfinished:
                raise ClientConnectionResetError("the body failed half-way, so the client must not take it for whole")
            await super().write_eof(*data)


class _BodyGuard(CommitGuard):
    """The guard for a ``web.Response`` that somebody prepared by hand."""

    if not TYPE_CHECKING:  # as above
        body = _guarded_property("body")
        text = _guarded_property("text")


def seal(response: web.StreamResponse) -> None:
    """Make a committed response of the application drop changes from now on, for each holder. Idempotent.

    It stays the same object of the same class name; only the class gets the guard in front.
    """
    if isinstance(response, CommitGuard):
        if not response.head_sent:
            response.head_sent = True
    else:
        kind = type(response)
        if kind not in _sealed:
            guard = _BodyGuard if issubclass(kind, web.Response) else CommitGuard
            members = {"head_sent": True, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
            _sealed[kind] = type(kind.__name__, (guard, kind), members)
        response.__class__ = _sealed[kind]
    if response._cookies is not None:
        cast("CommitGuard", response).freeze_cookies()


_sealed: dict[type[web.StreamResponse], type[web.StreamResponse]] = {}  # as many as there are response classes


# What tells a client where a message ends and what becomes of the connection (RFC 9112, 6; RFC 9110, 7.6.1): only the
# response that is sent can know.
FRAMING = frozenset(
    {"content-length", "transfer-encoding", "trailer", "connection", "keep-alive", "proxy-connection", "upgrade"}
)
# What tells a client of an event stream how to read its bytes.
CODING = frozenset({"content-encoding", "content-type"})

# These may be sent many times and each one counts; of any other header the staged ones take the place.
ADDED = frozenset({"set-cookie", "vary", "link", "www-authenticate", "server-timing"})

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class StagedHeaders(GuardedHeaders):
    """What is staged: refuses what cannot be sent, and drops and logs what frames a message.

    A value that would end its line (CR, LF or another control character) raises ``ValueError``, one that is no text
    ``TypeError``, here and not when the head is to be written: then there would be no answer at all.
    """

    __slots__ = ()

    def __setitem__(self, name: str, value: str) -> None:
        if self._takes(name, value):
            super().__setitem__(name, value)

    def add(self, name: str, value: str) -> None:
        """Stage a header beside others of its name."""
        if self._takes(name, value):
            super().add(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Stage a header, unless there is one of its name."""
        return super().setdefault(name, default) if name in self or self._takes(name, default) else default

    def extend(self, *arguments: Any, **values: Any) -> None:
        """Stage headers beside others of their names."""
        super().extend(self._taken(arguments, values))

    def update(self, *arguments: Any, **values: Any) -> None:
        """Stage headers in the place of others of their names."""
        super().update(self._taken(arguments, values))

    def merge(self, *arguments: Any, **values: Any) -> None:
        """Stage headers, except those of whose names there are some."""
        super().merge(self._taken(arguments, values))

    def copy(self) -> StagedHeaders:
        """Return a copy, in which more can be staged."""
        return StagedHeaders(self)

    def sent(self, context: RequestContext) -> None:
        """Take no more: these were merged into a response."""
        self._committed = context

    def _taken(self, arguments: tuple[Any, ...], values: Mapping[str, Any]) -> CIMultiDict[str]:
        given: CIMultiDict[str] = CIMultiDict(*arguments, **values)
        return CIMultiDict([item for item in given.items() if self._takes(*item)])

    def _takes(self, name: str, value: str) -> bool:
        """Tell whether a header can be staged. Raises ``TypeError`` or ``ValueError`` for one that cannot be sent."""
        if not (type(value) is str and value.isprintable() and type(name) is str and name.isprintable()):
            _check(name, value)
        if not _frames(name):
            return True
        context = next((context for context in contexts.values() if context._staged is self), None)
        _log_dropped(name, value, context, where=True)
        return False


def merge(staged: CIMultiDict[str], response: web.StreamResponse, context: RequestContext) -> None:
    """Merge staged headers into a response that is about to be sent."""
    headers = response._headers
    owned = CODING if _is_event_stream(response) else frozenset()
    for name in {key.lower(): key for key in staged}.values():
        if name.lower() in owned or _frames(name):  # the latter if it came by way of a copy
            for value in staged.popall(name):
                if headers.get(name) != value:
                    _log_dropped(name, value, context)
        elif name.lower() not in ADDED:
            headers.popall(name, None)
    for item in staged.items():
        _check(*item)
    headers.extend(staged)


def drop_framing(headers: CIMultiDict[str], context: RequestContext | None, names: Iterable[str] = FRAMING) -> None:
    """Drop, from the head of an event stream, what would frame it otherwise, or have its bytes read otherwise."""
    for name in names:
        if name in headers:
            for value in headers.popall(name):
                _log_dropped(name, value, context)


def _frames(name: str) -> bool:
    name = name.lower()
    return name in FRAMING or name.startswith("sec-websocket-")


def _is_event_stream(response: web.StreamResponse) -> bool:
    content_type = response._headers.get(hdrs.CONTENT_TYPE, "").lower()
    return getattr(response, "event_stream", False) or content_type.startswith("text/event-stream")


def _check(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header is text, not {name!r}: {value!r}")
    line = f"{name}: {value}"
    if _CONTROL.search(line) or any("\ud800" <= character <= "\udfff" for character in line):
        raise ValueError(f"a header is one line of text, and {line!r} is not")


def _log_dropped(name: str, value: str, context: RequestContext | None, *, where: bool = False) -> None:
    """Log a header that was dropped, and who staged it if that is the stage which runs now."""
    interceptor, stage = (None, None) if context is None or not where else running_stage(context)
    error = ValueError(
        f"{name}: {value} was dropped: the response that is sent says itself how it is framed; "
        "to close a connection call response.force_close(), and set what describes one body on the response that has it"
    )
    log.exception(
        "framing_header_dropped",
        header=name,
        value=value,
        interceptor=interceptor,
        stage=stage,
        path=None if context is None else context.request.path,
        execution_id=None if context is None else context.execution_id,
        exc_info=error.with_traceback(offending_line()),
    )
