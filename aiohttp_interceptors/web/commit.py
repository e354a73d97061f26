"""What holds after commit: a response whose head is on the wire drops every change, and logs who tried.

aiohttp accepts such changes in silence, and a second response it writes into the body of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from http.cookies import SimpleCookie
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from ..errors import ResponseCommitted
from ..observe.logs import log

if TYPE_CHECKING:
    from .context import RequestContext

__all__ = ["CommitGuard", "FrozenHeaders", "contexts", "drop", "seal"]

contexts: dict[AbstractStreamWriter, RequestContext] = {}
"""The context of each request whose chain runs, by what the request and its clones have in common."""


def drop(attempted: str, committed: RequestContext | web.StreamResponse | None, cause: Exception | None = None) -> None:
    """Log, once and with the traceback of the offending line, a change that a committed response cannot take."""
    context = _context_of(committed) if committed is None or isinstance(committed, web.StreamResponse) else committed
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


def _context_of(response: web.StreamResponse | None) -> RequestContext | None:
    """Find whose response it is: so seldom that no response, while it is open, need remember it."""
    return next((context for context in contexts.values() if context.response is response is not None), None)


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

    __slots__ = ("_committed",)

    _committed: RequestContext | web.StreamResponse | None

    @classmethod
    def of(cls, headers: Mapping[str, str], committed: RequestContext | web.StreamResponse) -> FrozenHeaders:
        """Copy headers of a response, or of what a request had staged."""
        frozen = cls(headers)
        frozen._committed = committed
        return frozen


class _FrozenCookies(SimpleCookie):
    """The cookies that were sent: can be read as ever, and drops what would change them."""

    _committed: web.StreamResponse


def _freeze(kind: type, what: str, verbs: str, reads: dict[str, Callable[..., Any]]) -> None:
    """Have a mapping class drop these calls; those that also return something read it, and it stays."""
    for verb in [*verbs.split(), *reads]:

        def method(self: Any, *args: Any, _verb: str = verb, **values: Any) -> Any:
            if not (_verb == "setdefault" and args[0] in self):
                drop(_written(what, _verb, args, values), getattr(self, "_committed", None))
            return reads[_verb](self, *args, **values) if _verb in reads else None

        setattr(kind, verb, method)


def _written(what: str, verb: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    """Write a call as the offending line has it."""
    if verb == "__setitem__":
        return f"{what}[{args[0]!r}] = {args[1]!r}"
    if verb == "__delitem__":
        return f"del {what}[{args[0]!r}]"
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
_freeze(FrozenHeaders, "headers", _CHANGES + "add extend merge", {**_ITEM, **_ONE})
_freeze(_FrozenCookies, "cookies", _CHANGES + "load", {**_ITEM, "pop": dict.get})


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
        return getattr(super(CommitGuard, self), name)

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
        return FrozenHeaders.of(headers, self) if self.head_sent else headers

    @property
    def cookies(self) -> SimpleCookie:
        """The cookies; after commit a copy that drops changes."""
        cookies = super().cookies
        if not self.head_sent:
            return cookies
        frozen = _FrozenCookies()
        frozen._committed = self
        for name, morsel in cookies.items():
            dict.__setitem__(frozen, name, morsel.copy())
        return frozen


class _BodyGuard(CommitGuard):
    """The guard for a ``web.Response`` that somebody prepared by hand."""

    if not TYPE_CHECKING:  # as above
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
