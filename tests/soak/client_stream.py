"""One stream as its client sees it: every event is checked, also when the client resumes."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.soak.feed import event_id, parse_id, text

HEARTBEAT = b":\n"


def without_heartbeats(frame: bytes) -> bytes:
    """Remove the heartbeats in front of a frame."""
    while frame.startswith(HEARTBEAT):
        frame = frame.removeprefix(HEARTBEAT)
    return frame


@dataclass
class ClientStream:
    """What a client received in one stream, to be compared with what the server reports."""

    route: str
    path: str
    behavior: str
    status: int = 0
    events: int = 0  # events of the producer, and notices of dropped events
    numbered: int = 0
    missing: int = 0  # according to the notices
    bytes: int = 0  # without heartbeats
    complete: bool = False  # the end of the body was received
    prompt: bool = True  # the client read everything without delay until the stream ended
    disconnected: bool = False  # by the client
    problems: list[str] = field(default_factory=list)


class ClientPosition:
    """The last event that a client received, over all its streams."""

    def __init__(self, start: int | None = None) -> None:
        self.epoch = self.number = 0
        self.start = start  # the first stream starts after this number, if the request says so

    @property
    def last_event_id(self) -> str | None:
        return event_id(self.epoch, self.number) if self.epoch else None


class FrameChecker:
    """Parse the body of one stream, independently of the library's decoder, and check its events."""

    def __init__(self, position: ClientPosition, stream: ClientStream) -> None:
        self._position = position
        self._stream = stream
        self._incomplete = b""
        self._is_new = not position.epoch  # no event was received yet, by this client in any stream
        self._skipped = 0  # events that a notice reported as dropped, just before the next one

    def feed(self, data: bytes) -> None:
        """Parse a part of the body."""
        *frames, self._incomplete = (self._incomplete + data).split(b"\n\n")
        for frame in map(without_heartbeats, frames):
            if frame:
                self._stream.bytes += len(frame) + 2
                self._check_frame(frame.decode())

    def end(self) -> None:
        """Record the end of the body, which must not be within a frame."""
        self._stream.complete = True
        if without_heartbeats(self._incomplete):
            self._problem(f"the body ends within a frame: {self._incomplete[:60]!r}")

    def _check_frame(self, frame: str) -> None:
        data: list[str] = []
        fields: dict[str, str] = {}
        for line in frame.split("\n"):
            name, colon, value = line.partition(": ")
            if not colon or name not in {"data", "id", "event", "retry"}:
                self._problem(f"an invalid line: {line[:60]!r}")
            elif name == "data":
                data.append(value)
            else:
                fields[name] = value
        stream, name = self._stream, fields.get("event")
        if "id" in fields:
            stream.events += 1
            stream.numbered += 1
            self._check_number(*parse_id(fields["id"]), "\n".join(data))
        elif name == "dropped":
            stream.events += 1
            self._skipped = int("".join(data).removeprefix('{"dropped":').removesuffix("}"))
            stream.missing += self._skipped
        elif name == "body":
            stream.events += 1
        elif name not in {"farewell", "failed"} and set(fields) != {"retry"}:
            self._problem(f"an unknown frame: {frame[:60]!r}")

    def _check_number(self, epoch: int, number: int, data: str) -> None:
        position = self._position
        if data != text(epoch, number):
            self._problem(f"event {epoch}-{number} has wrong data: {data[:60]!r}")
        if self._is_new:
            expected = number if position.start is None else position.start + 1
            self._is_new = False
        elif epoch == position.epoch:
            expected = position.number + 1 + self._skipped
        else:  # resumed at a server with another history
            expected = 1 + self._skipped
        if number != expected or epoch < position.epoch:
            kind = "repeated" if number < expected else "missing"
            self._problem(
                f"{kind}: received {epoch}-{number} instead of {epoch}-{expected}, after {position.last_event_id}"
            )
        self._skipped = 0
        position.epoch, position.number = epoch, number

    def _problem(self, message: str) -> None:
        self._stream.problems.append(message)
