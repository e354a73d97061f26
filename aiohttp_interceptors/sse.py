"""An event, checked when built: what a producer can say is what a browser will see."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable

__all__ = ["HEARTBEAT", "Decoder", "Event", "compact_json", "encode", "frame_with_id", "is_comment", "is_larger"]


_CR = re.compile(r"\r\n?")  # ends a line as LF does, and nothing else does (WHATWG HTML 9.2.5), unlike in splitlines()
MAX_RETRY = 2**53 - 1  # the greatest whole number that JavaScript is sure of; some bound there must be
_NUMBERS = (int, float)
_WHOLE_NUMBERS = (int,)
_NO_MORE = (None, None, None, None)


def compact_json(value: object) -> str:
    """Serialise to JSON without blanks. Raises ``ValueError`` for NaN and infinities, which no browser can parse."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Event:
    """One event of a stream, as the producer says it and the browser sees it. Immutable.

    ``data`` may hold any line ends; CR and CRLF become LF, as they do on their way to a browser. Numbers become text.
    ``name`` is the type that a page listens for; a blank one means none, which is ``message``. ``id`` becomes the
    page's last event id; a blank one means none too, but ``""`` resets it. ``retry`` is in milliseconds. A
    ``comment`` is seen by no page.

    Without data an event is not dispatched by any client, so a name alone gets empty data. ``id``, ``retry`` or
    ``comment`` alone may stand without.

    Raises ``TypeError`` or ``ValueError`` with the value: CR, LF or NUL in ``id``, CR or LF in ``name``, a ``retry``
    that is not a whole number from 0 to 2⁵³-1, text that UTF-8 cannot carry. Source: WHATWG HTML 9.2.5 and 9.2.6.
    """

    __slots__ = ("_data", "_more")

    _data: str | None
    _more: tuple[str | None, str | None, int | None, str | None] | None
    """Name, id, retry and comment; ``None`` for an event of data alone, which most are and which shall cost little."""

    def __init__(
        self,
        data: str | float | None = None,
        name: str | None = None,
        id: str | int | None = None,  # noqa: A002  # the field's name in the standard
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        if data is not None and (type(data) is not str or not data.isascii() or "\r" in data):
            data = _lines("data", data, _NUMBERS)
        if name is None and id is None and retry is None and comment is None:
            self._data = "" if data is None else data
            self._more = None
            return
        if name is not None:
            name = _line("name", name, ()) or None
        if id is not None:
            id = _line("id", id, _WHOLE_NUMBERS)  # noqa: A001  # as above
        if retry is not None and (type(retry) is not int or not 0 <= retry <= MAX_RETRY):
            raise (ValueError if type(retry) is int else TypeError)(
                f"retry is a whole number of milliseconds from 0 to {MAX_RETRY}, not {retry!r}"
            )
        if comment is not None:
            comment = _lines("comment", comment, ())
        more = (name, id, retry, comment)
        alone = more == _NO_MORE
        self._data = "" if data is None and (alone or name is not None) else data
        self._more = None if alone else more

    @property
    def data(self) -> str | None:
        """The text, its lines ended by LF; ``None`` if no client shall dispatch the event."""
        return self._data

    @property
    def name(self) -> str | None:
        """The type; ``None`` means ``message``."""
        return None if self._more is None else self._more[0]

    @property
    def id(self) -> str | None:
        """What becomes the last event id; ``None`` leaves that as it is."""
        return None if self._more is None else self._more[1]

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds; ``None`` leaves that as it is."""
        return None if self._more is None else self._more[2]

    @property
    def comment(self) -> str | None:
        """What no page sees, its lines ended by LF."""
        return None if self._more is None else self._more[3]

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
        """Make an event whose data is JSON; ``dumps`` may give ``bytes``, as orjson's does.

        Raises what ``dumps`` raises, here in the producer.
        """
        text = dumps(value)
        if isinstance(text, bytes):
            text = text.decode()
        if not isinstance(text, str):
            raise TypeError(f"dumps gives a str or bytes, and {dumps!r} gave {text!r}")
        return cls(text, name, id, retry, comment)

    @classmethod
    def _as_read(
        cls,
        data: str | None,
        name: str | None,
        id: str | None,  # noqa: A002  # as above
        retry: int | None,
        comment: str | None,
    ) -> Event:
        """Make an event of what is an event's already; one from a foreign stream may have a blank name or id."""
        event = object.__new__(cls)
        more = (name, id, retry, comment)
        event._data = data
        event._more = None if more == _NO_MORE else more
        return event

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self._data == other._data and self._more == other._more

    def __hash__(self) -> int:
        return hash((self._data, self._more))

    def __reduce__(self) -> tuple[Callable[..., Event], tuple[object, ...]]:
        return type(self)._as_read, self._fields()

    def __repr__(self) -> str:
        fields = zip(("data", "name", "id", "retry", "comment"), self._fields(), strict=True)
        return f"Event({', '.join(f'{name}={value!r}' for name, value in fields if value is not None)})"

    def _fields(self) -> tuple[str | None, str | None, str | None, int | None, str | None]:
        return (self._data, *(self._more or _NO_MORE))


def _lines(field: str, value: object, numbers: tuple[type, ...]) -> str:
    """Give the text of a field that may have many lines, their ends as LF, or raise."""
    text = _text(field, value, numbers)
    return _CR.sub("\n", text) if "\r" in text else text


def _line(field: str, value: object, numbers: tuple[type, ...]) -> str | None:
    """Give the text of a field that is one line, ``None`` for a blank one, or raise."""
    text = value if type(value) is str and value.isascii() else _text(field, value, numbers)
    if "\n" in text or "\r" in text:
        raise ValueError(f"an event's {field} is one line, and {text!r} is not: the rest would be read as other fields")
    if field == "id" and "\0" in text:
        raise ValueError(f"an event's id holds no NUL, and {text!r} does: clients ignore such an id")
    return None if text.isspace() else text


def _text(field: str, value: object, numbers: tuple[type, ...]) -> str:
    """Give a field's text as a plain ``str``, or raise for what is none."""
    if type(value) is str:
        text = value
    elif isinstance(value, str):
        text = str.__str__(value)  # an enum's member is formatted as its name, and its value is meant
    elif isinstance(value, numbers):
        text = str(value)
    else:
        hint = "; Event.json(value) makes JSON of anything else" if field == "data" else ""
        raise TypeError(f"an event's {field} is a str, not {value!r}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"an event's {field} is sent as UTF-8, which cannot carry {text!r}: {error.reason}") from None
    return text


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
