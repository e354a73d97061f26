"""The owners of open streams, whose streams can be ended together, on all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from .._logging import log as logger
from ..exceptions import EXIT_EXCEPTIONS
from ..sse import Decoder, Event, encode
from .nodes import ControlMessage, Nodes

__all__ = ["OwnedStream", "Owners", "check_owner"]


MAX_OWNER = 255  # characters
# Seconds for which a disconnect is remembered, for streams that were requested before it and open after it.
OPENING_TIMEOUT = 60.0


class OwnedStream(Protocol):
    """An open stream that has owners."""

    @property
    def requested_at(self) -> float:
        """When the stream was requested, in seconds of the event loop's clock."""

    def kick(self, kick_event: Event | None) -> None:
        """End the stream as ``kicked``, with this final event."""


def check_owner(owner: object) -> str:
    """Return an owner. Raises ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(owner, str):
        raise TypeError(f"an owner is a str, such as 'user:7' or 'session:…', not {owner!r}")
    if not (0 < len(owner) <= MAX_OWNER and owner.isprintable()):
        raise ValueError(f"an owner is 1 to {MAX_OWNER} printable characters, not {owner[:300]!r}")
    return owner


class Owners:
    """The open streams of each owner."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[OwnedStream, None]] = {}
        self._disconnected: dict[str, float] = {}  # when each owner was disconnected, oldest first
        self._linked: list[Owners] = []
        self._nodes: Nodes | None = None

    def share(self, nodes: Nodes) -> None:
        """Receive what other nodes disconnect."""
        self._nodes = nodes
        nodes.add_state(self)

    def link(self, owners: Owners) -> None:
        """Disconnect the streams of other registries, too. Idempotent."""
        if owners not in self._linked:
            self._linked.append(owners)

    def add(self, stream: OwnedStream, owners: Iterable[str]) -> None:
        """Add a stream that has opened. It is ended if an owner was disconnected after it was requested."""
        for owner in owners:
            self._streams.setdefault(owner, {})[stream] = None
        if any(self._disconnected.get(owner, float("-inf")) >= stream.requested_at for owner in owners):
            stream.kick(None)

    def discard(self, stream: OwnedStream, owners: Iterable[str]) -> None:
        """Remove a stream that has closed. Idempotent."""
        for owner in owners:
            streams = self._streams.get(owner, {})
            streams.pop(stream, None)
            if not streams:
                self._streams.pop(owner, None)

    def count(self, owner: str) -> int:
        """Return the number of open streams of an owner."""
        return len(self._streams.get(owner, ()))

    def disconnect(self, owner: str, time: float, event: Event | None) -> None:
        """End the streams of an owner that were requested before a time of the event loop's clock."""
        self._forget(time - OPENING_TIMEOUT)
        self._disconnected.pop(owner, None)
        self._disconnected[owner] = time
        for stream in list(self._streams.get(owner, ())):
            if stream.requested_at <= time:
                try:
                    stream.kick(event)
                except EXIT_EXCEPTIONS:
                    raise
                except BaseException as error:  # noqa: BLE001  # the other streams must end, too
                    logger.exception("stream_end_failed", exc_info=error)
        for owners in self._linked:
            owners.disconnect(owner, time, event)

    def _forget(self, through: float) -> None:
        while self._disconnected:
            owner = next(iter(self._disconnected))
            if self._disconnected[owner] > through:
                break
            del self._disconnected[owner]

    # Other nodes.

    @staticmethod
    def message(owner: str, event: Event | None) -> ControlMessage:
        """Return the message that tells other nodes of a disconnect."""
        return {"type": "disconnect", "owner": owner, "event": None if event is None else encode(event).decode()}

    def receive(self, node: str, message: ControlMessage, age: float) -> None:
        """Handle a message of another node. This one has ended its streams already."""
        if message["type"] == "disconnect" and self._nodes is not None and node != self._nodes.id:
            frame = message["event"]
            event = None if frame is None else next(iter(Decoder().feed(frame.encode())), None)
            self.disconnect(check_owner(message["owner"]), asyncio.get_running_loop().time() - age, event)

    def caught_up(self) -> None:
        """Do nothing: the log has all disconnects."""

    def node_died(self, node: str) -> None:
        """Do nothing: streams end with their process."""

    def unsent(self) -> Iterable[ControlMessage]:
        """Return nothing: ``Hub.disconnect`` sends its message itself."""
        return ()

    def send_failed(self) -> None:
        """Do nothing, for the same reason."""

    def leases(self) -> Iterable[ControlMessage]:
        """Return nothing: no lease is needed."""
        return ()
