"""``rate_limit``: the token bucket against a model, and the responses."""

from __future__ import annotations

from fractions import Fraction

import http_sf
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import interceptor_middleware
from aiohttp_interceptors.ready import rate_limit
from aiohttp_interceptors.ready.rate_limit import _Buckets
from aiohttp_interceptors.testing import request_context, run_chain
from tests.ready.site import KINDS, STREAMS, plain


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def by_user(context) -> str | None:
    return context.request.query.get("user", "ada")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("kind", KINDS)
async def test_each_request_takes_a_token_and_without_one_is_refused(site, fetch, clock, kind):
    server = await site(rate_limit(2, 10, key=by_user, clock=clock), handler=KINDS[kind]())
    seen = []
    for _ in range(3):
        status, headers, _ = await fetch(server)
        seen.append((headers["RateLimit"], headers.get("Retry-After")))
        assert headers["RateLimit-Policy"] == '"default";q=2;w=10'
    assert seen == [('"default";r=1;t=5', None), ('"default";r=0;t=5', None), ('"default";r=0;t=5', "5")]
    assert status == 429


async def test_a_token_comes_back_after_the_seconds_of_retry_after(site, fetch, clock):
    server = await site(rate_limit(3, 10, key=by_user, clock=clock))
    assert [(await fetch(server))[0] for _ in range(4)] == [200, 200, 200, 429]
    clock.now += 3.3
    assert (await fetch(server))[0] == 429
    clock.now += int((await fetch(server))[1]["Retry-After"])
    assert (await fetch(server))[0] == 200


async def test_each_key_has_its_own_bucket_and_none_is_not_limited(site, fetch, clock):
    def key(context) -> str | None:
        return context.request.query.get("user")

    server = await site(rate_limit(1, 10, key=key, clock=clock))
    assert [(await fetch(server, path=f"/?user={each}"))[0] for each in "aabb"] == [200, 429, 200, 429]
    for _ in range(3):
        status, headers, _ = await fetch(server)
        assert (status, "RateLimit" in headers) == (200, False)


async def test_a_burst_is_larger_or_smaller_than_the_rate(site, fetch, clock):
    server = await site(rate_limit(1, 1, key=by_user, burst=3, clock=clock, name="burst"))
    statuses = [await fetch(server) for _ in range(4)]
    assert [status for status, *_ in statuses] == [200, 200, 200, 429]
    assert statuses[0][1]["RateLimit-Policy"] == '"burst";q=3;w=3'


async def test_two_limits_are_both_in_the_headers(site, fetch, clock):
    limits = [rate_limit(9, 9, key=by_user, clock=clock, name=name) for name in ("short", "long")]
    _, headers, _ = await fetch(await site(*limits))
    assert headers["RateLimit-Policy"] == '"short";q=9;w=9, "long";q=9;w=9'
    assert headers["RateLimit"] == '"short";r=8;t=1, "long";r=8;t=1'


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_counts_once_when_it_opens(site, fetch, clock, kind):
    server = await site(rate_limit(1, 10, key=by_user, clock=clock), handler=KINDS[kind]())
    assert (await fetch(server))[0] == 200
    status, headers, _ = await fetch(server)
    assert (status, headers["Content-Type"]) == (429, "text/plain; charset=utf-8")


async def test_an_async_key_is_an_error(site, fetch, raised):
    async def key(context) -> str:
        return "a"

    assert (await fetch(await site(rate_limit(1, 1, key=key))))[0] == 500
    (error,) = raised()
    assert isinstance(error, TypeError)


# The syntax of the fields: RFC 9651, and draft-ietf-httpapi-ratelimit-headers.


def read(context, field: str) -> dict[str, dict[str, object]]:
    """Return the items of a list of strings with parameters, by their string, as another parser reads it."""
    items = http_sf.parse(context.response_headers[field].encode(), tltype="list")
    assert all(isinstance(name, str) and not isinstance(name, http_sf.Token) for name, _ in items)
    names = [name for name, _ in items]
    assert len(names) == len(set(names))
    return dict(items)


printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1).filter(str.strip)


@given(
    name=printable,
    requests=st.integers(1, 999_999_999_999_999),
    seconds=st.floats(0.001, 1e6) | st.integers(1, 10**6),
    burst=st.none() | st.integers(1, 1000),
    times=st.integers(1, 3),
)
async def test_both_fields_are_lists_of_strings_with_integer_parameters(name, requests, seconds, burst, times):
    limit = rate_limit(requests, seconds, key=lambda context: 1, burst=burst, name=name, clock=lambda: 0.0)
    for number in range(1, times + 1):
        context = await run_chain(request_context(), limit)
        ((policy, quota),) = read(context, "RateLimit-Policy").items()
        ((limited, left),) = read(context, "RateLimit").items()
        assert policy == limited == name
        assert quota == {"q": burst or requests, "w": quota["w"]}
        assert type(quota["w"]) is int
        assert quota["w"] >= 1
        assert left["r"] == max(0, (burst or requests) - number)
        assert set(left) <= {"r", "t"}
        assert type(left.get("t", 1)) is int
        assert 1 <= left.get("t", 1) <= quota["w"]


async def test_retry_after_waits_for_each_limit_that_is_used_up(clock):
    """Not earlier than the time of any of them, as the draft asks."""
    minute = rate_limit(2, 60, key=lambda context: 1, name="minute", clock=clock)
    second = rate_limit(1, 4, key=lambda context: 1, name="second", clock=clock)
    for _ in range(2):
        context = await run_chain(request_context(), minute, second)
    assert read(context, "RateLimit") == {"minute": {"r": 0, "t": 30}, "second": {"r": 0, "t": 4}}
    assert context.response.status == 429
    assert context.response.headers["Retry-After"] == "30"


async def test_retry_after_does_not_wait_for_a_limit_that_has_tokens_left(clock):
    hour = rate_limit(10, 3600, key=lambda context: 1, name="hour", clock=clock)
    second = rate_limit(1, 4, key=lambda context: 1, name="second", clock=clock)
    for _ in range(2):
        context = await run_chain(request_context(), hour, second)
    assert context.response.headers["Retry-After"] == "4"


async def test_two_limits_of_one_name_are_an_error_that_takes_no_token(clock):
    first = rate_limit(5, 5, key=lambda context: 1, clock=clock)
    second = rate_limit(9, 9, key=lambda context: 1, clock=clock)
    with pytest.raises(ValueError, match="two rate limits of a request are named 'default'; give each a name="):
        await run_chain(request_context(), first, second)
    context = await run_chain(request_context(), second)
    assert read(context, "RateLimit") == {"default": {"r": 8, "t": 1}}


async def test_a_second_attempt_shows_each_limit_once(serve, fetch, clock):
    @web.middleware
    async def twice(request, handler):
        await handler(request)
        return await handler(request)

    limit = rate_limit(5, 5, key=by_user, clock=clock)
    app = web.Application(middlewares=[interceptor_middleware(), twice, interceptor_middleware(limit)])
    app.router.add_get("/", plain)
    _, headers, _ = await fetch(await serve(app))
    assert headers["RateLimit"] == '"default";r=3;t=1'
    assert headers["RateLimit-Policy"] == '"default";q=5;w=5'


class Model:
    """A token bucket with exact numbers."""

    def __init__(self, capacity: int, rate: Fraction) -> None:
        self.capacity, self.rate, self.tokens, self.at = capacity, rate, Fraction(capacity), Fraction(0)

    def take(self, now: Fraction) -> tuple[bool, int]:
        self.tokens = min(Fraction(self.capacity), self.tokens + (now - self.at) * self.rate)
        self.at = now
        allowed = self.tokens >= 1
        self.tokens -= allowed
        return allowed, int(self.tokens)


@given(
    capacity=st.integers(1, 5),
    requests=st.integers(1, 8),
    seconds=st.sampled_from([1, 2, 4, 8]),
    gaps=st.lists(st.integers(0, 40), max_size=60),
)
def test_a_bucket_is_the_model(capacity, requests, seconds, gaps):
    buckets, model, now = _Buckets(capacity, requests / seconds, 9), Model(capacity, Fraction(requests, seconds)), 0
    for gap in gaps:
        now += gap
        taken = buckets.take("a", now / 16)
        assert (taken.allowed, taken.remaining) == model.take(Fraction(now, 16))


@given(
    capacity=st.integers(1, 5),
    requests=st.integers(1, 50),
    seconds=st.floats(0.5, 100),
    gaps=st.lists(st.floats(0, 50), min_size=1, max_size=40),
)
def test_waiting_as_long_as_told_is_enough_and_never_too_many_pass(capacity, requests, seconds, gaps):
    rate, now, passed = requests / seconds, 0.0, 0
    buckets = _Buckets(capacity, rate, 9)
    for gap in gaps:
        now += gap
        taken = buckets.take("a", now)
        passed += taken.allowed
        if not taken.allowed:
            now += taken.wait
            passed += 1
            assert buckets.take("a", now).allowed
        assert passed <= capacity + rate * now + 1e-3


@given(keys=st.lists(st.integers(0, 9), max_size=60), max_keys=st.integers(1, 5))
def test_the_memory_is_bounded_and_the_idlest_key_is_forgotten(keys, max_keys):
    buckets, recent = _Buckets(100, 0.001, max_keys), []
    for key in keys:
        expected = [*recent].count(key) > 0
        before = buckets._levels.get(key)
        assert (before is not None) == expected
        buckets.take(key, 0.0)
        recent = [*[each for each in recent if each != key], key][-max_keys:]
        assert len(buckets) == len(recent) <= max_keys


def test_a_clock_that_goes_back_gives_no_tokens():
    buckets = _Buckets(1, 1.0, 9)
    assert [buckets.take("a", now).allowed for now in (5.0, 1.0, 1.5, 2.5)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 1), {}, ValueError, "requests is 1 or more, not 0"),
        ((1.5, 1), {}, TypeError, "requests is a whole number, not 1.5"),
        ((1, 0), {}, ValueError, "seconds is more than 0 seconds, not 0"),
        ((1, 1), {"key": "user"}, TypeError, "key is a function, not 'user'"),
        ((1, 1), {"burst": 0}, ValueError, "burst is 1 or more, not 0"),
        ((1, 1), {"max_keys": 0}, ValueError, "max_keys is 1 or more, not 0"),
        ((10**15, 1), {}, ValueError, "requests is at most 999999999999999, the largest integer of a header"),
        ((1, 1), {"burst": 10**15}, ValueError, "burst is at most 999999999999999"),
        ((10**400, 1), {"burst": 1}, ValueError, "requests is at most 999999999999999"),
        ((1, 1e15), {}, ValueError, "the time for all tokens is at most 999999999999999"),
        ((1, 1e308), {"burst": 100}, ValueError, "the time for all tokens is at most 999999999999999"),
        ((1, 1), {"name": "a\tb"}, ValueError, r"name is printable ASCII, not 'a\\tb'"),
        ((1, 1), {"name": "é"}, ValueError, "name is printable ASCII, not 'é'"),
        ((1, 1), {"name": ""}, ValueError, "name is printable ASCII, not ''"),
        ((1, 1), {"clock": 0}, TypeError, "clock is a function, not 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        rate_limit(*arguments, **{"key": by_user, **options})
