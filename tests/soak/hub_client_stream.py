"""What a client makes of its streams of a Hub: each is written down, to be judged when the ledger is complete."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from hub_feed import text
from reading import Receipt, without_heartbeats

_text = lru_cache(maxsize=20_000)(text)  # many clients get the same, and a server would seem to leak
RECORD, PASSING, GAP, STATE, PRIME = "record", "passing", "gap", "state", "prime"


class Item(NamedTuple):
    """What came in one frame."""

    kind: str
    time: float  # when it was read
    id: str | None
    number: int  # of an event that was published
    topic: str
    said: str  # a gap's JSON, or the data of a snapshot's event


@dataclass
class Opening(Receipt):
    """One stream."""

    hub: int = 0
    topics: tuple[str, ...] = ()
    part: int | None = None
    asked: str | None = None  # the id to return with
    items: list[Item] = field(default_factory=list)
    reading_since: float = 0.0  # it has read all there was from then on
    end: float = 0.0  # of reading
    over: bool = False
    closed: bool = False  # it has come to its end, which in HTTP/1.0 the connection's may be
    silent: bool = False  # the server said nothing for too long


class Frames:
    """Take one stream's body apart, with a parser of its own."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._rest = b""
        self.last = opening.asked

    def feed(self, data: bytes) -> None:
        """Take the bytes of a piece of the body."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        now = time.monotonic()
        for frame in frames:
            frame = without_heartbeats(frame)  # noqa: PLW2901  # they stand before it
            if frame:
                self._opening.bytes += len(frame) + 2
                self._take(frame.decode(), now)

    def finish(self) -> None:
        """Note a clean end, after which there is no half a frame."""
        self._opening.clean = True
        if without_heartbeats(self._rest):
            self._opening.problems.append(f"the body ends within a frame: {self._rest[:60]!r}")

    def _take(self, frame: str, now: float) -> None:
        lines: list[str] = []
        fields: dict[str, str] = {}
        for line in frame.split("\n"):
            name, _, value = line.partition(": ")
            if name == "data":
                lines.append(value)
            elif name in {"id", "event", "retry"} and name not in fields:
                fields[name] = value
            else:
                self._opening.problems.append(f"a line of no event: {line[:60]!r}")
        given, name, data, number, topic = fields.get("id"), fields.get("event"), "\n".join(lines), 0, ""
        kind = {None: RECORD, "passing": PASSING, "gap": GAP, "state": STATE}.get(name, "")
        if given is not None:
            self.last = given
        if kind == RECORD and not data and set(fields) <= {"id", "retry"}:
            kind = PRIME
        elif kind in {RECORD, PASSING}:
            written, topic, key = data.split(" ", 3)[:3]
            number = int(written)
            if data != _text(number, topic, key) or (given is None) != (kind == PASSING):
                self._opening.problems.append(f"nobody published this: {frame[:80]!r}")
            data = ""
        elif kind == GAP:
            json.loads(data)
        elif not kind:
            if name != "farewell":
                self._opening.problems.append(f"nobody sent this: {frame[:80]!r}")
            return
        if kind != PRIME:
            self._opening.events += 1
        self._opening.items.append(Item(kind, now, given, number, topic, data))
