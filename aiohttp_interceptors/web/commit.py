"""What holds after commit: a response whose head is on the wire drops every change, and logs who tried.

aiohttp accepts such changes in silence, and a second response it writes into the body of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from http.cookies import SimpleCookie
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web
from multidict import CIMultiDict

from ..errors import ResponseCommitted
from ..observe.logs import log

if TYPE_CHECKING:
    from .context import RequestContext

__all__ = ["CommitGuard", "FrozenHeaders", "committed_in", "drop", "seal"]

R = TypeVar("R", bound=web.StreamResponse)

committed_in: ContextVar[RequestContext | None] = ContextVar("aiohttp_interceptors.committed_in", default=None)
"""The context of the request that this task serves, from commit on: setting it earlier would cost every request."""


def drop(attempted: str, cause: Exception | None = None) -> None:
    """Log, once and with the traceback of the offending line, a change that a committed response cannot take."""
    context = committed_in.get()
    execution = None if context is None else context._execution
    name, stage = (None, None) if execution is None else execution.where()
    error = cause or ResponseCommitted(f"{attempted}: the head is on the wire, so the change was dropped")
    if error.__traceback__ is None:
        error = error.with_traceback(_offending_line())
    log.exception(
        "change_after_commit_dropped",
        attempted=attempted,
        interceptor=name,
        stage=stage,
        execution_id=None if context is None else context.execution_id,
        exc_info=error,
    )


def _offending_line() -> TracebackType | None:
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


class FrozenHeaders(CIMultiDict[str]):
    """The headers that were sent: can be read as ever, and drops what would change them."""

    __slots__ = ()

    def __setitem__(self, key: str, value: str) -> None:
        drop(f"set header {key!r} to {value!r}")

    def __delitem__(self, key: str) -> None:
        drop(f"delete header {key!r}")

    def add(self, key: str, value: str) -> None:
        """Drop a header."""
        drop(f"add header {key!r} with {value!r}")

    def extend(self, *args: Any, **values: Any) -> None:
        """Drop some headers."""
        drop(f"add headers {_shown(args, values)}")

    def update(self, *args: Any, **values: Any) -> None:
        """Drop some headers."""
        drop(f"update headers {_shown(args, values)}")

    def merge(self, *args: Any, **values: Any) -> None:
        """Drop some headers."""
        drop(f"merge headers {_shown(args, values)}")

    def clear(self) -> None:
        """Drop a wish for no headers."""
        drop("clear headers")

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the header if it was sent, else drop it and return the default."""
        if key not in self:
            drop(f"set header {key!r} to {default!r}")
        return self.get(key, default)

    def popone(self, key: str, *default: Any) -> Any:
        """Return the header, which stays."""
        drop(f"delete header {key!r}")
        return self.getone(key, *default)

    pop = popone

    def popall(self, key: str, *default: Any) -> Any:
        """Return the headers of that name, which stay."""
        drop(f"delete headers {key!r}")
        return self.getall(key, *default)

    def popitem(self) -> tuple[str, str]:
        """Return a header, which stays."""
        drop("delete a header")
        return next(iter(self.items()))


class _FrozenCookies(SimpleCookie):
    """The cookies that were sent: drops what would change them."""

    def __setitem__(self, key: str, value: Any) -> None:
        drop(f"set cookie {key!r}")

    def __delitem__(self, key: str) -> None:
        drop(f"delete cookie {key!r}")

    def load(self, rawdata: Any) -> None:
        """Drop some cookies."""
        drop(f"load cookies {rawdata!r}")

    def update(self, *args: Any, **values: Any) -> None:
        """Drop some cookies."""
        drop(f"update cookies {_shown(args, values)}")

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the cookie if it was sent, else drop it and return the default."""
        if key not in self:
            drop(f"set cookie {key!r}")
        return self.get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """Return the cookie, which stays."""
        drop(f"delete cookie {key!r}")
        return self.get(key, *default)

    def popitem(self) -> Any:
        """Return a cookie, which stays."""
        drop("delete a cookie")
        return next(iter(self.items()))

    def clear(self) -> None:
        """Drop a wish for no cookies."""
        drop("clear cookies")


def _shown(args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    return ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in values.items())])


def _guarded_method(name: str, attempted: str) -> Any:
    """Make a method that does what the next class's does until commit, and is dropped from then on."""

    def method(self: CommitGuard, *args: Any, **values: Any) -> Any:
        if self.head_sent:
            return drop(f"{attempted}({_shown(args, values)})")
        return getattr(super(CommitGuard, self), name)(*args, **values)

    method.__name__ = name
    return method


def _guarded_property(name: str) -> Any:
    """Make a property that can be read as ever, and whose setter is dropped after commit."""

    def read(self: CommitGuard) -> Any:
        return getattr(super(CommitGuard, self), name)

    def write(self: CommitGuard, value: Any) -> None:
        if self.head_sent:
            return drop(f"set {name} to {value!r}")
        inherited = next(vars(base)[name] for base in type(self).__mro__[_depth(self) :] if name in vars(base))
        return inherited.__set__(self, value)  # super() reads properties but does not set them

    return property(read, write)


def _depth(response: CommitGuard) -> int:
    return type(response).__mro__.index(CommitGuard) + 1


class CommitGuard(web.StreamResponse):
    """A response that drops, after commit, every change of what was sent with its head.

    Comes before the response class whose methods it guards: ``class Mine(CommitGuard, web.StreamResponse)``.
    """

    head_sent: bool = False

    set_status = _guarded_method("set_status", "set_status")
    set_cookie = _guarded_method("set_cookie", "set_cookie")
    del_cookie = _guarded_method("del_cookie", "del_cookie")
    enable_compression = _guarded_method("enable_compression", "enable_compression")
    enable_chunked_encoding = _guarded_method("enable_chunked_encoding", "enable_chunked_encoding")
    content_type = _guarded_property("content_type")
    charset = _guarded_property("charset")
    content_length = _guarded_property("content_length")
    last_modified = _guarded_property("last_modified")
    etag = _guarded_property("etag")

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers; after commit a copy that drops changes, made when asked for so that open streams hold none."""
        headers = super().headers
        return FrozenHeaders(headers) if self.head_sent else headers

    @property
    def cookies(self) -> SimpleCookie:
        """The cookies; after commit a copy that drops changes."""
        cookies = super().cookies
        if not self.head_sent:
            return cookies
        frozen = _FrozenCookies()
        for name, morsel in cookies.items():
            dict.__setitem__(frozen, name, morsel.copy())
        return frozen


class _BodyGuard(CommitGuard):
    """The guard for a ``web.Response`` that somebody prepared by hand."""

    body = _guarded_property("body")
    text = _guarded_property("text")


def seal(response: web.StreamResponse) -> None:
    """Make somebody else's committed response drop changes from now on, whoever holds it.

    It stays the same object of the same class name; only the class gets the guard in front.
    """
    if isinstance(response, CommitGuard):
        response.head_sent = True
        return
    kind = type(response)
    if kind not in _sealed:
        guard = _BodyGuard if issubclass(kind, web.Response) else CommitGuard
        members = {"head_sent": True, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        _sealed[kind] = type(kind.__name__, (guard, kind), members)
    response.__class__ = _sealed[kind]


_sealed: dict[type[web.StreamResponse], type[web.StreamResponse]] = {}  # as many as there are response classes
