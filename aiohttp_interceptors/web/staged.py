"""Headers that interceptors stage for whatever response is sent, and the ones that cannot be staged for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..observe.logs import log
from .commit import GuardedHeaders, contexts, offending_line, running_stage

if TYPE_CHECKING:
    from .context import RequestContext

__all__ = ["FRAMING", "StagedHeaders", "drop_framing", "merge"]

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
