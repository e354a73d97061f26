"""The syntax of HTTP fields that the interceptors share: tokens, quoted strings, lists, origins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from ..chain import ContextKey

__all__ = [
    "MAX_INTEGER",
    "TOKEN",
    "check_flag",
    "check_function",
    "check_key",
    "check_origin",
    "check_origins",
    "check_printable",
    "check_token",
    "joined",
    "quoted",
    "split_outside_quotes",
    "tokens",
]


TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token. Source: RFC 9110, 5.6.2."""

MAX_INTEGER = 999_999_999_999_999
"""The largest integer of a structured field. Source: RFC 9651, 3.3.1."""

_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)  # possessive: a string that does not end costs one look
_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_token(name: str, value: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` if a value is not a token."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {value!r}")
    if not TOKEN.fullmatch(value):
        raise ValueError(f"{name} is a token of letters, digits and some punctuation (RFC 9110, 5.6.2), not {value!r}")


def tokens(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return tokens as a tuple, or raise ``TypeError`` or ``ValueError``. A single ``str`` is refused."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is a list of str, not {values!r}")
    checked = tuple(values)
    for value in checked:
        check_token(f"each of {name}", value)
    return checked


def check_function(name: str, function: object) -> None:
    """Raise ``TypeError`` if a value cannot be called."""
    if not callable(function):
        raise TypeError(f"{name} is a function, not {function!r}")


def check_flag(name: str, value: object) -> None:
    """Raise ``TypeError`` if a value is not a ``bool``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}")


def check_key(key: object) -> None:
    """Raise ``TypeError`` if a value is not a ``ContextKey``."""
    if not isinstance(key, ContextKey):
        raise TypeError(f'key is a ContextKey, as in ContextKey[str]("name"), not {key!r}')


def check_printable(name: str, value: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` if a value is not a ``str`` of printable ASCII, or is empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {value!r}")
    if not (value.strip() and value.isascii() and value.isprintable()):
        raise ValueError(f"{name} is printable ASCII, not {value!r}")


def check_origins(origins: Iterable[str]) -> frozenset[str]:
    """Return origins as a set, or raise ``TypeError`` or ``ValueError``."""
    if isinstance(origins, str) or not isinstance(origins, Iterable):
        raise TypeError(f"origins is a list of origins such as 'https://example.com', not {origins!r}")
    return frozenset([check_origin("origins", origin) for origin in origins])


def check_origin(name: str, origin: object) -> str:
    """Return an origin, or raise ``TypeError`` or ``ValueError`` unless a browser would send it exactly like this.

    Source: RFC 6454, 6.1.
    """
    if not isinstance(origin, str):
        raise TypeError(f"{name} has origins such as 'https://example.com', not {origin!r}")
    parts = urlsplit(origin)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if (
        not parts.scheme
        or not parts.hostname
        or origin != f"{parts.scheme}://{parts.netloc}"
        or origin != origin.lower()
        or not origin.isascii()
        or "@" in origin
        or port in (-1, _DEFAULT_PORTS.get(parts.scheme))
    ):
        raise ValueError(
            f"{name} has origins as a browser sends them, such as 'https://example.com' or 'http://localhost:8080': "
            f"a scheme and a host in lower case, a port unless it is the default, and no path; not {origin!r}"
        )
    return origin


def joined(values: Iterable[str]) -> str | None:
    """Join the lines of a field (RFC 9110, 5.3); ``None`` without a line."""
    lines = list(values)
    return ", ".join(lines) if lines else None


def split_outside_quotes(text: str, separator: str) -> list[str]:
    """Split at a separator that is not in a quoted string, and strip the parts. A quote that is not closed is text.

    Takes time in proportion to the text, whatever it is, because clients send it.
    """
    parts: list[list[str]] = [[]]
    start = 0
    while True:
        quote = text.find('"', start)
        string = None if quote < 0 else _QUOTED.match(text, quote)
        first, *others = text[start : None if string is None else quote].split(separator)
        parts[-1].append(first)
        parts += [[other] for other in others]
        if string is None:
            return ["".join(part).strip(" \t") for part in parts]
        parts[-1].append(string[0])
        start = string.end()


def quoted(text: str) -> str:
    """Return a quoted string, which structured fields have too. Sources: RFC 9110, 5.6.4; RFC 9651, 3.3.3."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
