"""Server-Sent Events: the event, its encoding and a decoder.

An ``Event`` is validated when it is created, so that ``encode`` cannot fail. ``encode`` turns an event into a frame:
the bytes of its fields and the blank line that dispatches it. ``Decoder`` parses an event stream. The format is that of
WHATWG HTML 9.2.5 (parsing) and 9.2.6 (interpretation).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable

__all__ = ["HEARTBEAT", "Decoder", "Event", "compact_json", "encode", "frame_with_id", "is_comment", "is_larger"]


# An empty comment, the shortest keep-alive. It has no blank line, because many clients other than browsers dispatch an
# empty event at one.
HEARTBEAT = b":\n"

PIECES_PER_BLOCK = 1024  # of a line that arrives in pieces
MAX_RETRY = 2**53 - 1  # milliseconds; the largest integer that JavaScript represents exactly

_CR = re.compile(r"\r\n?")  # CR, LF and CRLF end a line (WHATWG HTML 9.2.5); str.splitlines() also splits at others


def compact_json(value: object) -> str:
    """Serialise to JSON without whitespace. Raises ``ValueError`` for NaN and infinities, which are not JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Event:
    """A Server-Sent Event. Immutable and hashable.

    Clients do not dispatch an event without data. An event that has only a ``name``, or no field at all, therefore gets
    empty data. ``id``, ``retry`` and ``comment`` can be sent without data.

    Source: WHATWG HTML 9.2.5 and 9.2.6.

    Args:
        data: The data. CR and CRLF become LF, as they do in a browser. A number becomes text.
        name: The event type. If it is blank or ``None``, browsers dispatch a ``message`` event.
        id: The last event ID of the client from this event on. An integer becomes text. ``""`` resets the ID; other
            blank text is the same as ``None``.
        retry: The reconnection time in milliseconds, from 0 to 2⁵³-1.
        comment: Text that clients ignore. CR and CRLF become LF.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: ``name`` or ``id`` contains CR or LF, ``id`` contains NUL, ``retry`` is out of range, or a text
            cannot be encoded as UTF-8.
    """

    __slots__ = ("_comment", "_data", "_id", "_name", "_retry")

    def __init__(
        self,
        data: str | float | None = None,
        name: str | None = None,
        id: str | int | None = None,  # noqa: A002  # the field's name in the standard
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        if data is not None and (type(data) is not str or not data.isascii() or "\r" in data):
            data = _multiline("data", data, (int, float))
        if name is not None:
            name = _single_line("name", name, ()) or None
        if id is not None:
            id = _single_line("id", id, (int,))  # noqa: A001  # as above
        if retry is not None and (type(retry) is not int or not 0 <= retry <= MAX_RETRY):
            raise (ValueError if type(retry) is int else TypeError)(
                f"retry is a whole number of milliseconds from 0 to {MAX_RETRY}, not {retry!r}"
            )
        if comment is not None:
            comment = _multiline("comment", comment, ())
        if data is None and (name is not None or (id is None and retry is None and comment is None)):
            data = ""
        self._data: str | None = data
        self._name: str | None = name
        self._id: str | None = id
        self._retry: int | None = retry
        self._comment: str | None = comment

    @property
    def data(self) -> str | None:
        """The data, with LF line ends. Clients do not dispatch an event whose data is ``None``."""
        return self._data

    @property
    def name(self) -> str | None:
        """The event type. ``None`` means ``message``."""
        return self._name

    @property
    def id(self) -> str | None:
        """The last event ID that the event sets. ``None`` leaves it unchanged."""
        return self._id

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds that the event sets. ``None`` leaves it unchanged."""
        return self._retry

    @property
    def comment(self) -> str | None:
        """Text that clients ignore, with LF line ends."""
        return self._comment

    @classmethod
    def json(
        cls,
        value: object,
        name: str | None = None,
        id: str | int | None = None,  # noqa: A002  # the field's name in the standard
        retry: int | None = None,
        comment: str | None = None,
        *,
        dumps: Callable[[object], str | bytes] = compact_json,
    ) -> Event:
        """Create an event whose data is JSON.

        Args:
            value: The value to serialise.
            name: See ``Event``.
            id: See ``Event``.
            retry: See ``Event``, in milliseconds.
            comment: See ``Event``.
            dumps: Serialises the value to ``str`` or ``bytes``, for example ``orjson.dumps``. By default
                ``json.dumps`` without whitespace.

        Returns:
            The event.

        Raises:
            TypeError: ``dumps`` returned neither ``str`` nor ``bytes``.
            Exception: What ``dumps`` or ``Event`` raises.
        """
        text = dumps(value)
        if isinstance(text, bytes):
            text = text.decode()
        if not isinstance(text, str):
            raise TypeError(f"dumps must return str or bytes, and {dumps!r} returned {text!r}")
        return cls(text, name, id, retry, comment)

    @classmethod
    def _from_fields(
        cls,
        data: str | None,
        name: str | None,
        id: str | None,  # noqa: A002  # as above
        retry: int | None,
        comment: str | None,
    ) -> Event:
        """Create an event without validation. A decoded one may have a blank name or ID, which __init__ would drop."""
        event = object.__new__(cls)
        event._data, event._name, event._id, event._retry, event._comment = data, name, id, retry, comment
        return event

    def _fields(self) -> tuple[str | None, str | None, str | None, int | None, str | None]:
        return self._data, self._name, self._id, self._retry, self._comment

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[Callable[..., Event], tuple[object, ...]]:
        return type(self)._from_fields, self._fields()

    def __repr__(self) -> str:
        fields = zip(("data", "name", "id", "retry", "comment"), self._fields(), strict=True)
        return f"Event({', '.join(f'{name}={value!r}' for name, value in fields if value is not None)})"


def encode(event: Event, retry: int | None = None) -> bytes:
    """Encode an event as a frame.

    A frame ends with a blank line. The frame of an event that is only a comment ends with a lone ``:`` instead, because
    many clients other than browsers would dispatch an empty event at the blank line. Source: WHATWG HTML 9.2.5.

    Args:
        event: The event.
        retry: The reconnection time in milliseconds that is added if the event has none.

    Returns:
        The frame, as UTF-8.
    """
    data = event._data
    if event._retry is not None:
        retry = event._retry
    if event._name is None and event._id is None and event._comment is None and retry is None and data is not None:
        # Most events have only data.
        if "\n" in data:
            data = data.replace("\n", "\ndata: ")
        return f"data: {data}\n\n".encode()
    frame = ""
    if event._comment is not None:
        frame = ": " + event._comment.replace("\n", "\n: ") + "\n"
    if event._name is not None:
        frame += f"event: {event._name}\n"
    if data is not None:
        frame += "data: " + data.replace("\n", "\ndata: ") + "\n"
    if event._id is not None:
        frame += f"id: {event._id}\n"
    if retry is not None:
        frame += f"retry: {retry}\n"
    elif data is None and event._id is None:
        return frame.encode() + HEARTBEAT
    return (frame + "\n").encode()


def is_comment(event: Event) -> bool:
    """Return whether an event is only a comment, so that its frame has no blank line."""
    return event._data is None and event._id is None and event._retry is None and event._name is None


def frame_with_id(event_id: str, frame: bytes) -> bytes:
    """Prepend an ID to a frame. A comment gets a blank line, without which a client would not process the ID."""
    return b"id: %b\n%b%b" % (event_id.encode(), frame, b"" if frame.endswith(b"\n\n") else b"\n")


def is_larger(event: Event, size: int) -> bool:
    """Return whether the frame of an event has more than ``size`` bytes, in most cases without encoding it."""
    length = 0 if event._data is None else len(event._data)
    if event._name is not None:
        length += len(event._name)
    if event._id is not None:
        length += len(event._id)
    if event._comment is not None:
        length += len(event._comment)
    # An upper bound: LF becomes the 7 bytes of "\ndata: ", any other character has at most 4. The names and line ends
    # of all fields, with the digits of retry, have less than 64 bytes.
    return length * 7 + 64 > size and len(encode(event)) > size


class Decoder:
    """An incremental parser of an event stream.

    It also returns what a browser does not dispatch: comments, and events without data. ``data`` of these is ``None``.
    A lone ``:`` is counted as a heartbeat, unless it follows a comment and no other field: there it ends an event that
    is only a comment, as written by ``encode``. Source: WHATWG HTML 9.2.6.

    Attributes:
        last_event_id: The last event ID, which a client sends when it reconnects.
        retry: The reconnection time in milliseconds, or ``None`` if the stream did not set one.
        heartbeats: Number of heartbeats received.
    """

    def __init__(self) -> None:
        self.last_event_id: str = ""
        self.retry: int | None = None
        self.heartbeats: int = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial_line: list[str] = []  # its pieces, the newest last
        self._partial_blocks: list[str] = []  # earlier pieces of it, joined: many small texts take many times as much
        self._started = False
        self._after_cr = False
        self._reset()

    def _reset(self) -> None:
        """Clear the buffers of the current event."""
        self._data: list[str] = []
        self._comments: list[str] = []
        self._name: str | None = None
        self._id: str | None = None
        self._event_retry: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Parse a chunk of the stream.

        Args:
            chunk: The next bytes of the stream, split anywhere.

        Returns:
            The events that the chunk completes. An event without its blank line at the end of the stream is discarded,
            as in a browser.
        """
        text = self._utf8.decode(chunk)
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
            if self._partial_blocks:
                self._partial_line[:0] = self._partial_blocks
                self._partial_blocks = []
            lines[0] = "".join(self._partial_line) + lines[0]
            self._partial_line = []
        elif len(self._partial_line) >= PIECES_PER_BLOCK:
            self._partial_blocks.append("".join(self._partial_line))
            self._partial_line = []
        self._partial_line.append(lines.pop())
        return [event for line in lines if (event := self._process_line(line)) is not None]

    def _process_line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        if line == ":":
            return self._process_lone_colon()
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
            # 17 significant digits exceed MAX_RETRY, and int() refuses to convert thousands of them.
            self.retry = self._event_retry = min(int(value.lstrip("0")[:17] or 0), MAX_RETRY)
        return None

    def _process_lone_colon(self) -> Event | None:
        """Count a heartbeat, or end an event that is only a comment."""
        if not self._comments:
            self.heartbeats += 1
        elif not (self._data or self._name is not None or self._id is not None or self._event_retry is not None):
            return self._dispatch()
        return None

    def _dispatch(self) -> Event | None:
        """End the current event. Returns ``None`` if it is empty."""
        data = "\n".join(self._data) if self._data else None
        name = (self._name or None) if data is not None else None
        comment = "\n".join(self._comments) if self._comments else None
        event_id, retry = self._id, self._event_retry
        self._reset()
        if event_id is not None:
            self.last_event_id = event_id
        if data is None and event_id is None and retry is None and comment is None:
            return None
        return Event._from_fields(data, name, event_id, retry, comment)


def _multiline(field: str, value: object, numbers: tuple[type, ...]) -> str:
    """Validate a field that may span several lines, and return it with LF line ends."""
    text = _text(field, value, numbers)
    return _CR.sub("\n", text) if "\r" in text else text


def _single_line(field: str, value: object, numbers: tuple[type, ...]) -> str | None:
    """Validate a field that is one line. Returns ``None`` if it is only whitespace."""
    text = value if type(value) is str and value.isascii() else _text(field, value, numbers)
    if "\n" in text or "\r" in text:
        raise ValueError(
            f"an event's {field} is one line, and {text!r} is not: the rest would be parsed as other fields"
        )
    if field == "id" and "\0" in text:
        raise ValueError(f"an event's id must not contain NUL, and {text!r} does: clients ignore such an id")
    return None if text.isspace() else text


def _text(field: str, value: object, numbers: tuple[type, ...]) -> str:
    """Validate a field's text and return it as a plain ``str``."""
    if type(value) is str:
        text = value
    elif isinstance(value, str):
        text = str.__str__(value)  # str() of an enum member would be its name
    elif isinstance(value, numbers):
        text = str(value)
    else:
        hint = "; Event.json(value) makes JSON of anything else" if field == "data" else ""
        raise TypeError(f"an event's {field} is a str, not {value!r}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"an event's {field} is sent as UTF-8, which cannot encode {text!r}: {error.reason}") from None
    return text
