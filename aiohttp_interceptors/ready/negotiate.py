"""``negotiate``: chooses the media type of a response by the request's ``Accept``. Source: RFC 9110, 12.5.1."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import hdrs, web

from ..chain import ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import TOKEN, check_key, joined, split_outside_quotes

__all__ = ["MEDIA_TYPE", "choose_media_type", "negotiate"]


MEDIA_TYPE = ContextKey[str]("media_type")
"""The media type that was chosen, as it was offered."""

# Characters of the field, in all its lines. aiohttp allows as many for one line, but 128 lines.
MAX_ACCEPT = 8190
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def negotiate(*offers: str, key: ContextKey[str] = MEDIA_TYPE) -> Interceptor[RequestContext]:
    """Make an interceptor that chooses one of some media types by the request's ``Accept`` header.

    The choice is ``context[MEDIA_TYPE]``, as it is written here. The answer is 406 if the client accepts none of them.
    ``Vary: Accept`` is staged in any case.

    The most specific range that matches an offer decides its weight, a weight of 0 excludes it, and the offer with the
    highest weight is chosen; of several, the first one. A request without ``Accept``, or with nothing valid in it,
    accepts everything, and one with more than 8,190 characters in it accepts nothing. Source: RFC 9110, 12.5.1.

    Args:
        *offers: The media types that the handler can produce, such as ``"text/html"``, the preferred ones first.
        key: The key of the choice.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type, or there is no offer.
        ValueError: An offer is not a media type.
    """
    if not offers:
        raise TypeError("negotiate takes the media types that the handler can produce, as in negotiate('text/html')")
    parsed = tuple(_offer(offer) for offer in offers)
    check_key(key)

    def enter(context: RequestContext) -> None:
        context.response_headers.add(hdrs.VARY, hdrs.ACCEPT)
        position = _choose(joined(context.request.headers.getall(hdrs.ACCEPT, [])), parsed)
        if position is None:
            raise web.HTTPNotAcceptable(text=f"This is available as {', '.join(offers)}.\n")
        context[key] = offers[position]

    return Interceptor(f"negotiate({', '.join(offers)})", enter)


def choose_media_type(accept: str | None, *offers: str) -> str | None:
    """Choose a media type by the value of an ``Accept`` header, as ``negotiate`` does.

    Args:
        accept: The value, or ``None`` for a request without the header.
        *offers: The media types to choose from, the preferred ones first.

    Returns:
        The offer, or ``None`` if none of them is acceptable.

    Raises:
        TypeError: An offer is not a ``str``.
        ValueError: An offer is not a media type.
    """
    position = _choose(accept, tuple(_offer(offer) for offer in offers))
    return None if position is None else offers[position]


class _MediaRange(NamedTuple):
    """A media type or a range of them. Names are in lower case, parameters in no order."""

    type: str
    subtype: str
    parameters: frozenset[tuple[str, str]] = frozenset()
    weight: float = 1.0

    @property
    def specificity(self) -> tuple[int, int]:
        """How specific the range is: by type and subtype, then by the number of parameters."""
        return (self.type != "*") + (self.subtype != "*"), len(self.parameters)

    def includes(self, offer: _MediaRange) -> bool:
        """Return whether an offer is in this range."""
        return (
            self.type in ("*", offer.type)
            and self.subtype in ("*", offer.subtype)
            and self.parameters <= offer.parameters
        )


def _offer(offer: object) -> _MediaRange:
    if not isinstance(offer, str):
        raise TypeError(f"a media type is a str such as 'text/html', not {offer!r}")
    parsed = _parse(offer)
    if parsed is None or "*" in (parsed.type, parsed.subtype) or parsed.weight != 1 or '"' in offer:
        raise ValueError(f"a media type is like 'text/html' or 'text/html;level=1', not {offer!r}")
    return parsed


def _choose(accept: str | None, offers: tuple[_MediaRange, ...]) -> int | None:
    """Return the position of the chosen offer, or ``None``."""
    if accept is not None and len(accept) > MAX_ACCEPT:
        return None
    elements = [] if accept is None else split_outside_quotes(accept, ",")
    ranges = [parsed for element in elements if (parsed := _parse(element)) is not None]
    if not ranges:
        return 0 if offers else None
    weights = [_weight_of(offer, ranges) for offer in offers]
    best = max(weights, default=0.0)
    return weights.index(best) if best > 0 else None


def _weight_of(offer: _MediaRange, ranges: list[_MediaRange]) -> float:
    """Return the weight of an offer. Of equally specific ranges, which contradict each other, the first one counts."""
    matching = [each for each in ranges if each.includes(offer)]
    return max(matching, key=lambda each: each.specificity).weight if matching else 0.0


def _parse(element: str) -> _MediaRange | None:
    """Parse a media range with parameters and weight, or return ``None`` if it is invalid."""
    name, *pieces = split_outside_quotes(element, ";")
    kind, slash, subtype = name.lower().partition("/")
    if not (slash and TOKEN.fullmatch(kind) and TOKEN.fullmatch(subtype)) or (kind == "*" and subtype != "*"):
        return None
    parameters: dict[str, str] = {}
    for piece in filter(None, pieces):
        key, equals, value = piece.partition("=")
        key = key.lower()
        if not equals or not TOKEN.fullmatch(key):
            return None
        if key == "q":
            if not _WEIGHT.fullmatch(value):
                return None
            return _MediaRange(kind, subtype, frozenset(parameters.items()), float(value))  # extensions may follow
        parameters[key] = _unquoted(value).lower()
    return _MediaRange(kind, subtype, frozenset(parameters.items()))


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if len(value) > 1 and value[0] == value[-1] == '"' else value
