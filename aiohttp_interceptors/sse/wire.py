"""Events to bytes and back. ``Decoder`` undoes ``encode``, however the bytes were cut on their way."""

from __future__ import annotations

import codecs

from .event import _NO_MORE, MAX_RETRY, Event

__all__ = ["HEARTBEAT", "Decoder", "encode", "frame_with_id", "is_comment", "is_larger"]

# An empty comment: the shortest thing that a proxy takes for life and a page does not see. Without a blank line, at
# which many clients that are no browsers dispatch an event without data.
HEARTBEAT = b":\n"


def encode(event: Event, retry: int | None = None) -> bytes:
    """Return an event's bytes: one frame, with the blank line that ends it.

    An event that is a comment alone ends with a lone ``:`` instead: clients that are no browsers would dispatch an
    empty event at a blank line. ``retry`` (milliseconds) goes into this frame if the event has none of its own.
    Source: WHATWG HTML 9.2.5.
    """
    data = event._data
    if event._more is None and retry is None and data is not None:
        if "\n" in data:
            data = data.replace("\n", "\ndata: ")
        return f"data: {data}\n\n".encode()
    name, event_id, own_retry, comment = event._more or _NO_MORE
    frame = ""
    if comment is not None:
        frame = ": " + comment.replace("\n", "\n: ") + "\n"
    if name is not None:
        frame += f"event: {name}\n"
    if data is not None:
        frame += "data: " + data.replace("\n", "\ndata: ") + "\n"
    if event_id is not None:
        frame += f"id: {event_id}\n"
    if own_retry is not None or retry is not None:
        frame += f"retry: {retry if own_retry is None else own_retry}\n"
    elif data is None and event_id is None:
        return frame.encode() + HEARTBEAT
    return (frame + "\n").encode()


def is_comment(event: Event) -> bool:
    """Tell whether an event is a comment alone, whose frame has no blank line."""
    return event._data is None and event._more is not None and event._more[:3] == _NO_MORE[:3]


def frame_with_id(event_id: str, frame: bytes) -> bytes:
    """Put an id before what ``encode`` returned; with one a comment has a blank line too, or it would not count."""
    return b"id: %b\n%b%b" % (event_id.encode(), frame, b"" if frame.endswith(b"\n\n") else b"\n")


def is_larger(event: Event, size: int) -> bool:
    """Tell whether an event has more bytes on the wire than that; most are so small that nobody has to encode them."""
    # A character has at most 4 bytes, and a line end becomes 7; the field names and their ends have 64.
    characters = len(event._data or "") + (len("".join(map(str, event._more))) if event._more else 0)
    return characters * 7 + 64 > size and len(encode(event)) > size


class Decoder:
    """Read a stream as a browser does, and show also what a browser does not: comments, and frames without data.

    ``feed`` gives an ``Event`` for each frame that said anything. A client dispatches those whose ``data`` is not
    ``None``. ``last_event_id`` is what it would send on reconnecting, ``retry`` its reconnection time (milliseconds)
    or ``None`` if the stream set none. A lone ``:`` is a heartbeat, which is counted in ``heartbeats`` and is no event;
    behind other comments, before any field, it ends an event that is a comment alone. Source: WHATWG HTML 9.2.6.
    """

    # What the frame has said so far.
    _data: list[str]
    _comments: list[str]
    _name: str | None
    _id: str | None
    _retry: int | None

    def __init__(self) -> None:
        self.last_event_id: str = ""
        self.retry: int | None = None
        self.heartbeats: int = 0
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._line: list[str] = []  # the pieces of a line whose end has not come
        self._started = False
        self._after_cr = False
        self._clear()

    def feed(self, chunk: bytes) -> list[Event]:
        """Take some bytes, cut anywhere, and return the events that they complete; a frame without its end is none."""
        text = self._text.decode(chunk)
        if not text:
            return []
        if not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(lines) > 1:
            lines[0] = "".join(self._line) + lines[0]
            self._line = []
        self._line.append(lines.pop())
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> Event | None:
        """Process a line; the blank one ends a frame."""
        if not line:
            return self._end_of_frame()
        if line == ":":
            return self._end_of_comment()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            self._comments.append(value)
        elif field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            # At most 17 digits that count, which is more than MAX_RETRY has: int() refuses to read thousands of them.
            self.retry = self._retry = min(int(value.lstrip("0")[:17] or 0), MAX_RETRY)
        return None

    def _end_of_comment(self) -> Event | None:
        """Process a lone colon: a heartbeat, unless it ends a comment that stands alone."""
        if not self._comments:
            self.heartbeats += 1
        elif not (self._data or self._name is not None or self._id is not None or self._retry is not None):
            return self._end_of_frame()
        return None

    def _end_of_frame(self) -> Event | None:
        data = "\n".join(self._data) if self._data else None
        name = (self._name or None) if data is not None else None
        comment = "\n".join(self._comments) if self._comments else None
        frame_id, retry = self._id, self._retry
        self._clear()
        if frame_id is not None:
            self.last_event_id = frame_id
        if data is None and frame_id is None and retry is None and comment is None:
            return None
        return Event._as_read(data, name, frame_id, retry, comment)

    def _clear(self) -> None:
        self._data, self._comments = [], []
        self._name = self._id = self._retry = None
