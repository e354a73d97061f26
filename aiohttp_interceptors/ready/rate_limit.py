"""``rate_limit``: how many requests a client may send, with a token bucket for each key."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from aiohttp import hdrs, web

from .._checks import check_count, check_seconds, check_synchronous
from ..chain import ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import MAX_INTEGER, check_function, check_printable, quoted

__all__ = ["rate_limit"]


def rate_limit(
    requests: int,
    seconds: float,
    *,
    key: Callable[[RequestContext], Hashable | None],
    burst: int | None = None,
    max_keys: int = 10_000,
    name: str = "default",
    clock: Callable[[], float] = time.monotonic,
) -> Interceptor[RequestContext]:
    """Make an interceptor that answers 429 to a client that sends requests too fast.

    Each key has a bucket of ``burst`` tokens, into which ``requests`` tokens flow in ``seconds``. A request takes one.
    Without one it is refused with ``Retry-After``, and takes none. Each response with a key has ``RateLimit-Policy``
    and ``RateLimit``: what remains, and the seconds until there is one more. With several limits in a chain, both name
    all that the request has passed, and ``Retry-After`` waits for each of them that is used up.

    A stream counts as one request, when it opens; ``setup(app, max_streams_per_key=…)`` limits open streams. The
    buckets are in the memory of the process: several processes allow as many times the limit.

    Sources: RFC 6585, 4 (429); RFC 9110, 10.2.3 (Retry-After); draft-ietf-httpapi-ratelimit-headers-11.

    Args:
        requests: Number of requests that a key may send in ``seconds``.
        seconds: The period.
        key: A plain function of the context that returns what to count by, such as a user or an address; ``None`` for
            a request that is not limited. Behind a proxy, ``request.remote`` is the address of the proxy.
        burst: Number of requests that may come at once after a pause. Default: ``requests``.
        max_keys: Number of buckets. Above it, the key that was idle for the longest time is forgotten, and starts
            again with a full bucket. A client that can choose its key freely is not limited.
        name: Name of the policy in the headers. Each limit of a request needs a name of its own; with two of one name
            its chain raises ``ValueError``.
        clock: A function that returns seconds and never goes back, for tests.

    Returns:
        The interceptor. Each one has its own buckets, also if it is used several times.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, or cannot be sent in a header, which has up to 15 digits; or ``name`` is
            not printable ASCII.
    """
    check_count("requests", requests, 1)
    check_seconds("seconds", seconds, "")
    check_function("key", key)
    capacity = requests if burst is None else burst
    check_count("burst", capacity, 1)
    check_count("max_keys", max_keys, 1)
    check_printable("name", name)
    check_function("clock", clock)
    _check_integer("requests", requests)
    _check_integer("burst", capacity)
    window = capacity * seconds / requests
    _check_integer("the time for all tokens", window)
    buckets = _Buckets(capacity, requests / seconds, max_keys)
    shown = quoted(name)
    policy = f"{shown};q={capacity};w={max(1, math.ceil(window))}"

    def enter(context: RequestContext) -> None:
        chosen = check_synchronous(key(context), f"key of rate_limit, {key!r},")
        if chosen is None:
            return
        others = context.get(_STATES, {})
        if name in others and others[name].buckets is not buckets:  # a second attempt may pass the same one again
            raise ValueError(f"two rate limits of a request are named {name!r}; give each a name=, which clients see")
        taken = buckets.take(chosen, clock())
        remaining = f"{shown};r={taken.remaining}" + (f";t={math.ceil(taken.wait)}" if taken.wait > 0 else "")
        states = {**others, name: _State(buckets, policy, remaining, 0 if taken.remaining else math.ceil(taken.wait))}
        context[_STATES] = states
        context.response_headers["RateLimit-Policy"] = ", ".join([state.policy for state in states.values()])
        context.response_headers["RateLimit"] = ", ".join([state.remaining for state in states.values()])
        if not taken.allowed:
            wait = max(1, *[state.wait for state in states.values()])
            raise web.HTTPTooManyRequests(headers={hdrs.RETRY_AFTER: str(wait)}, text="Too many requests.\n")

    return Interceptor(f"rate_limit({name})", enter)


def _check_integer(name: str, value: float) -> None:
    if not value <= MAX_INTEGER:
        raise ValueError(f"{name} is at most {MAX_INTEGER}, the largest integer of a header, not {value!r}")


_ROUNDING = 1e-6  # tokens; more than the error of adding up fractions, so that waiting as told is always enough


class _Taken(NamedTuple):
    """What became of a request for a token."""

    allowed: bool
    remaining: int
    """Whole tokens that are left."""
    wait: float
    """Seconds until there is one more; 0 if the bucket is full."""


class _State(NamedTuple):
    """What a request is told of one limit."""

    buckets: _Buckets
    """Those of the limit, which identify it."""
    policy: str
    """Item of ``RateLimit-Policy``."""
    remaining: str
    """Item of ``RateLimit``."""
    wait: int
    """Seconds until there is a token; 0 if there is one."""


_STATES = ContextKey[dict[str, _State]]("rate limits")  # by the name of the limit, outermost first


class _Buckets:
    """Token buckets, of which those that were used last are kept. One that is not kept is full."""

    def __init__(self, capacity: int, rate: float, max_keys: int) -> None:
        self._capacity = capacity
        self._rate = rate  # tokens a second
        self._max_keys = max_keys
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: Hashable, now: float) -> _Taken:
        """Take a token from the bucket of a key, if it has one."""
        tokens, counted_at = self._levels.pop(key, (float(self._capacity), now))
        tokens = min(float(self._capacity), tokens + max(0.0, now - counted_at) * self._rate)
        allowed = tokens >= 1 - _ROUNDING
        if allowed:
            tokens = max(0.0, tokens - 1)
        self._levels[key] = (tokens, now)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        whole = math.floor(tokens + _ROUNDING)
        wait = 0.0 if tokens >= self._capacity else max(0.0, whole + 1 - tokens) / self._rate
        return _Taken(allowed, whole, wait)
