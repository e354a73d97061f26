"""What a client makes of its streams: every event checked, over all its resumptions."""

from __future__ import annotations

from dataclasses import dataclass, field

from feed import event_id, parse_id, text

HEARTBEAT = b":\n"


def without_heartbeats(frame: bytes) -> bytes:
    """Return a frame without those that came before it."""
    while frame.startswith(HEARTBEAT):
        frame = frame.removeprefix(HEARTBEAT)
    return frame


@dataclass
class Receipt:
    """What came of one stream, to be compared with what the server says it sent."""

    route: str
    path: str
    manner: str
    status: int = 0
    events: int = 0  # the producer's, and notices of what was dropped
    numbered: int = 0
    missing: int = 0  # as the notices say
    bytes: int = 0  # without heartbeats
    clean: bool = False  # the body had an end
    prompt: bool = True  # it read what there was, and did nothing but that until the stream was over
    left: bool = False
    problems: list[str] = field(default_factory=list)


class ReadResult:
    """Where a client is in the history."""

    def __init__(self, begins: int | None = None) -> None:
        self.epoch = self.number = 0
        self.begins = begins  # the number after which the first stream starts, if that was asked for

    @property
    def last_event_id(self) -> str | None:
        return event_id(self.epoch, self.number) if self.epoch else None


class Frames:
    """Take one stream's body apart, with a parser of its own, and check what is in it."""

    def __init__(self, reading: ReadResult, receipt: Receipt) -> None:
        self._reading = reading
        self._receipt = receipt
        self._rest = b""
        self._resumed = reading.epoch
        self._missing = 0  # a notice said so, of what comes next

    def feed(self, data: bytes) -> None:
        """Take the bytes of a piece of the body."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            frame = without_heartbeats(frame)  # noqa: PLW2901  # they stand before it
            if frame:
                self._receipt.bytes += len(frame) + 2
                self._take(frame.decode())

    def end(self) -> None:
        """Note a clean end, after which there is no half a frame."""
        self._receipt.clean = True
        if without_heartbeats(self._rest):
            self._problem(f"the body ends within a frame: {self._rest[:60]!r}")

    def _take(self, frame: str) -> None:
        data: list[str] = []
        fields: dict[str, str] = {}
        for line in frame.split("\n"):
            name, colon, value = line.partition(": ")
            if not colon or name not in {"data", "id", "event", "retry"}:
                self._problem(f"a line of no event: {line[:60]!r}")
            elif name == "data":
                data.append(value)
            else:
                fields[name] = value
        receipt, name = self._receipt, fields.get("event")
        if "id" in fields:
            receipt.events += 1
            receipt.numbered += 1
            self._numbered(*parse_id(fields["id"]), "\n".join(data))
        elif name == "dropped":
            receipt.events += 1
            self._missing = int("".join(data).removeprefix('{"dropped":').removesuffix("}"))
            receipt.missing += self._missing
        elif name == "body":
            receipt.events += 1
        elif name not in {"farewell", "failed"} and set(fields) != {"retry"}:
            self._problem(f"nobody sent this: {frame[:60]!r}")

    def _numbered(self, epoch: int, number: int, data: str) -> None:
        reading = self._reading
        if data != text(epoch, number):
            self._problem(f"event {epoch}-{number} has other data: {data[:60]!r}")
        if self._resumed == 0:
            expected = number if reading.begins is None else reading.begins + 1
            self._resumed = epoch
        elif epoch == reading.epoch:
            expected = reading.number + 1 + self._missing
        else:  # resumed at a server that has another history
            expected = 1 + self._missing
        if number != expected or epoch < reading.epoch:
            what = "repeated" if number < expected else "missing"
            self._problem(
                f"{what}: {epoch}-{number} came where {epoch}-{expected} was due, after {reading.last_event_id}"
            )
        self._missing = 0
        reading.epoch, reading.number = epoch, number

    def _problem(self, what: str) -> None:
        self._receipt.problems.append(what)
