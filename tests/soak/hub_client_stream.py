"""One stream of a Hub as its client sees it. Its items are checked when the ledger of the server is complete."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from tests.soak.client_stream import ClientStream, without_heartbeats
from tests.soak.hub_publisher import text

_text = lru_cache(maxsize=20_000)(text)  # many clients receive the same events
RECORD, EPHEMERAL, GAP, STATE, INITIAL_ID = "record", "ephemeral", "gap", "state", "initial_id"


class Item(NamedTuple):
    """The content of one frame."""

    kind: str
    time: float  # when it was read
    id: str | None
    number: int  # of an event that was published
    topic: str
    data: str  # of a gap, or of an event of a snapshot


@dataclass
class HubClientStream(ClientStream):
    """What a client received in one stream of a Hub."""

    hub: int = 0
    topics: tuple[str, ...] = ()
    part: int | None = None
    last_event_id: str | None = None  # of the request
    items: list[Item] = field(default_factory=list)
    reading_since: float = 0.0  # the client has read without delay since this time
    end: float = 0.0  # of reading
    finished: bool = False
    ended: bool = False  # the response ended; in HTTP/1.0 that is the end of the connection
    timed_out: bool = False  # the server sent nothing for too long


class FrameParser:
    """Parses the body of one stream, independently of the library's decoder."""

    def __init__(self, stream: HubClientStream) -> None:
        self._stream = stream
        self._incomplete = b""
        self.last_event_id = stream.last_event_id

    def feed(self, data: bytes) -> None:
        """Parse a part of the body."""
        *frames, self._incomplete = (self._incomplete + data).split(b"\n\n")
        now = time.monotonic()
        for frame in map(without_heartbeats, frames):
            if frame:
                self._stream.bytes += len(frame) + 2
                self._parse_frame(frame.decode(), now)

    def end(self) -> None:
        """Record the end of the body, which must not be within a frame."""
        self._stream.complete = True
        if without_heartbeats(self._incomplete):
            self._stream.problems.append(f"the body ends within a frame: {self._incomplete[:60]!r}")

    def _parse_frame(self, frame: str, now: float) -> None:
        lines: list[str] = []
        fields: dict[str, str] = {}
        for line in frame.split("\n"):
            name, _, value = line.partition(": ")
            if name == "data":
                lines.append(value)
            elif name in {"id", "event", "retry"} and name not in fields:
                fields[name] = value
            else:
                self._stream.problems.append(f"an invalid line: {line[:60]!r}")
        event_id, name, data, number, topic = fields.get("id"), fields.get("event"), "\n".join(lines), 0, ""
        kind = {None: RECORD, "ephemeral": EPHEMERAL, "gap": GAP, "state": STATE}.get(name, "")
        if event_id is not None:
            self.last_event_id = event_id
        if kind == RECORD and not data and set(fields) <= {"id", "retry"}:
            kind = INITIAL_ID
        elif kind in {RECORD, EPHEMERAL}:
            written, topic, key = data.split(" ", 3)[:3]
            number = int(written)
            if data != _text(number, topic, key) or (event_id is None) != (kind == EPHEMERAL):
                self._stream.problems.append(f"an event that was not published: {frame[:80]!r}")
            data = ""
        elif kind == GAP:
            json.loads(data)
        elif not kind:
            if name != "farewell":
                self._stream.problems.append(f"an unknown frame: {frame[:80]!r}")
            return
        if kind != INITIAL_ID:
            self._stream.events += 1
        self._stream.items.append(Item(kind, now, event_id, number, topic, data))
