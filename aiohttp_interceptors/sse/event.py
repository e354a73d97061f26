"""An event, checked when built: what a producer can say is what a browser will see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

__all__ = ["Event", "compact_json"]

LINE_END = re.compile(r"\r\n|\r|\n")  # WHATWG HTML 9.2.5; str.splitlines() would split on eight more
_NUMBERS = (int, float)


def compact_json(value: object) -> str:
    """Serialise to JSON without blanks. Raises ``ValueError`` for NaN and infinities, which no browser can parse."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Event:
    """One event of a stream, as the producer says it and the browser sees it. Immutable.

    ``data`` may hold any line ends; CR and CRLF become LF, as they do on their way to a browser. Numbers become text.
    ``name`` is the type that a page listens for; a blank one means none, which is ``message``. ``id`` becomes the
    page's last event id, and ``""`` resets it. ``retry`` is in milliseconds. A ``comment`` is seen by no page.

    Without data an event is not dispatched by any client, so a name alone gets empty data. ``id``, ``retry`` or
    ``comment`` alone may stand without.

    Raises ``TypeError`` or ``ValueError`` with the value: CR, LF or NUL in ``id``, CR or LF in ``name``, a ``retry``
    that is not a whole number from 0 up, text that UTF-8 cannot carry. Source: WHATWG HTML 9.2.5 and 9.2.6.
    """

    __slots__ = ("comment", "data", "id", "name", "retry")

    data: str | None
    name: str | None
    id: str | None
    retry: int | None
    comment: str | None

    def __init__(
        self,
        data: str | float | None = None,
        name: str | None = None,
        id: str | int | None = None,  # noqa: A002  # the field's name in the standard
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        if data is not None:
            data = _text("data", data, _NUMBERS)
            if "\r" in data:
                data = LINE_END.sub("\n", data)
        if name is not None:
            name = _line("name", _text("name", name)) or None
        if id is not None:
            id = _line("id", _text("id", id, (int,)), nul=False)  # noqa: A001  # as above
        if retry is not None and (type(retry) is not int or retry < 0):
            raise (ValueError if type(retry) is int else TypeError)(
                f"retry is a whole number of milliseconds, 0 or more, not {retry!r}"
            )
        if comment is not None:
            comment = LINE_END.sub("\n", _text("comment", comment))
        if data is None and (name is not None or (id is None and retry is None and comment is None)):
            data = ""
        fill = object.__setattr__
        fill(self, "data", data)
        fill(self, "name", name)
        fill(self, "id", id)
        fill(self, "retry", retry)
        fill(self, "comment", comment)

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
        return cls(text.decode() if isinstance(text, bytes) else text, name, id, retry, comment)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Event does not change; make another one to set {name} to {value!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Event does not change; make another one without {name}")

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[type[Event], tuple[object, ...]]:
        return Event, self._fields()

    def __repr__(self) -> str:
        fields = zip(("data", "name", "id", "retry", "comment"), self._fields(), strict=True)
        return f"Event({', '.join(f'{name}={value!r}' for name, value in fields if value is not None)})"

    def _fields(self) -> tuple[str | None, str | None, str | None, int | None, str | None]:
        return self.data, self.name, self.id, self.retry, self.comment


def _text(field: str, value: object, numbers: tuple[type, ...] = ()) -> str:
    """Give a field's text, or raise for what is none."""
    if not isinstance(value, str):
        if not isinstance(value, numbers):
            hint = "; Event.json(value) makes JSON of anything else" if field == "data" else ""
            raise TypeError(f"an event's {field} is a str, not {value!r}{hint}")
        return str(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"an event's {field} is sent as UTF-8, which cannot carry {value!r}: {error.reason}") from None
    return value


def _line(field: str, value: str, *, nul: bool = True) -> str:
    """Give the text of a field that is one line, ``""`` for a blank one."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"an event's {field} is one line, and {value!r} is not: the rest would be read as other fields")
    if not nul and "\0" in value:
        raise ValueError(f"an event's {field} holds no NUL, and {value!r} does: clients ignore such an {field}")
    return value if value.strip() else ""
