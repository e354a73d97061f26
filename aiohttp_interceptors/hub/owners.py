"""The owners of open streams, whose streams can be ended together, on all nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from .._logging import log as logger
from ..exceptions import EXIT_EXCEPTIONS
from ..sse import Decoder, Event, encode
from .nodes import ControlMessage, Nodes, NodeState

__all__ = ["OwnedStream", "Owners", "check_disconnect", "check_owner"]


MAX_OWNER = 255  # characters
# Seconds for which a disconnect is remembered, for requests that were received before it and whose owners are known
# after it: the stages in front of the stream run in between, and the body is read.
OPENING_TIMEOUT = 300.0


class OwnedStream(Protocol):
    """A stream that has owners, from the moment that they are known until it ends."""

    @property
    def requested_at(self) -> float:
        """When the stream was requested, in seconds of ``time.monotonic``."""

    def kick(self, kick_event: Event | None) -> None:
        """End the stream as ``kicked``, with this final event."""


def check_owner(owner: object) -> str:
    """Return an owner. Raises ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(owner, str):
        raise TypeError(f"an owner is a str, such as 'user:7' or 'session:…', not {owner!r}")
    if not (0 < len(owner) <= MAX_OWNER and owner.isprintable()):
        raise ValueError(f"an owner is 1 to {MAX_OWNER} printable characters, not {owner[:300]!r}")
    return owner


def check_disconnect(owner: object, event: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` if the streams of an owner cannot be ended with this final event."""
    check_owner(owner)
    if event is not None and not isinstance(event, Event):
        raise TypeError(f"event is an Event or None, not {event!r}")
    if event is not None and event.id is not None:
        raise ValueError(f"a final event has no id, from which a client would resume, and {event!r} has one")


class _Disconnect(NamedTuple):
    """The last disconnect of an owner."""

    time: float
    """In seconds of ``time.monotonic``."""
    at: float
    """By the clock of the node that disconnected the owner, in seconds of the Unix epoch."""
    event: Event | None


class Owners(NodeState):
    """The streams of each owner."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[OwnedStream, None]] = {}
        self._disconnected: dict[str, _Disconnect] = {}  # by owner, in the order in which they were received
        self._linked: list[Owners] = []
        self._nodes: Nodes | None = None
        self._memory = OPENING_TIMEOUT

    def share(self, nodes: Nodes) -> None:
        """Receive what other nodes disconnect."""
        self._nodes = nodes
        nodes.add_state(self)

    def link(self, owners: Owners) -> None:
        """Disconnect the streams of other registries, too. Idempotent."""
        if owners not in self._linked:
            self._linked.append(owners)
            owners.remember_for(self._memory)

    def remember_for(self, seconds: float) -> None:
        """Remember disconnects for at least this time, for credentials that were issued before them. Idempotent."""
        self._memory = max(self._memory, seconds)
        for owners in self._linked:
            owners.remember_for(self._memory)

    def was_disconnected_since(self, owner: str, moment: float) -> bool:
        """Return whether an owner was disconnected at or after a moment, in seconds of the Unix epoch."""
        last = self._disconnected.get(owner)
        return last is not None and last.at >= moment

    def time_after_disconnect(self, owner: str) -> float:
        """Return the time in seconds of the Unix epoch, which is after the last disconnect of an owner.

        By a clock that is ahead, the disconnect may be later than now: then this is the moment after it.
        """
        now, last = time.time(), self._disconnected.get(owner)
        return now if last is None or last.at < now else math.nextafter(last.at, math.inf)

    def add(self, stream: OwnedStream, owners: Iterable[str]) -> None:
        """Add a stream. It is ended if an owner was disconnected after it was requested."""
        for owner in owners:
            self._streams.setdefault(owner, {})[stream] = None
            last = self._disconnected.get(owner)
            if last is not None and last.time >= stream.requested_at:
                stream.kick(last.event)

    def discard(self, stream: OwnedStream, owners: Iterable[str]) -> None:
        """Remove a stream that has ended. Idempotent."""
        for owner in owners:
            streams = self._streams.get(owner, {})
            streams.pop(stream, None)
            if not streams:
                self._streams.pop(owner, None)

    def count(self, owner: str) -> int:
        """Return the number of streams of an owner that are open or opening."""
        return len(self._streams.get(owner, ()))

    def disconnect(self, owner: str, event: Event | None, age: float = 0.0, at: float | None = None) -> None:
        """End the streams of an owner that were requested before now, or before ``age`` seconds ago.

        ``at`` is that moment by the clock of the node that disconnects; ``None`` if that is this one.
        """
        now = time.monotonic()
        self._end_requested_before(_Disconnect(now - age, time.time() - age if at is None else at, event), owner, now)

    def _end_requested_before(self, disconnect: _Disconnect, owner: str, now: float) -> None:
        self._forget(now - self._memory)
        last = self._disconnected.pop(owner, disconnect)
        latest = max(last, disconnect, key=lambda each: each.time)  # one of another node may arrive late
        self._disconnected[owner] = latest._replace(at=max(last.at, disconnect.at))
        for stream in list(self._streams.get(owner, ())):
            if stream.requested_at <= disconnect.time:
                try:
                    stream.kick(disconnect.event)
                except EXIT_EXCEPTIONS:
                    raise
                except BaseException as error:  # noqa: BLE001  # the other streams must end, too
                    logger.exception("stream_end_failed", exc_info=error)
        for owners in self._linked:
            owners._end_requested_before(disconnect, owner, now)

    def _forget(self, through: float) -> None:
        while self._disconnected:
            owner = next(iter(self._disconnected))
            if self._disconnected[owner].time > through:
                break
            del self._disconnected[owner]

    # Other nodes.

    @staticmethod
    def message(owner: str, event: Event | None, at: float) -> ControlMessage:
        """Return the message that tells other nodes of a disconnect, and when it was by the clock of this one."""
        frame = None if event is None else encode(event).decode()
        return {"type": "disconnect", "owner": owner, "event": frame, "at": at}

    def receive(self, node: str, message: ControlMessage, age: float) -> None:
        """Handle a message of another node. This one has ended its streams already."""
        if message["type"] == "disconnect" and self._nodes is not None and node != self._nodes.id:
            frame = message["event"]
            event = None if frame is None else next(iter(Decoder().feed(frame.encode())), None)
            self.disconnect(check_owner(message["owner"]), event, max(age, 0.0), message.get("at"))
