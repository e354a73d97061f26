"""``server_timing``: the total until the headers, and the spans before them."""

from __future__ import annotations

import itertools

import pytest
from aiohttp import web

from aiohttp_interceptors import Context, RequestContext, event_stream
from aiohttp_interceptors.ready import server_timing, timing
from tests.ready.site import KINDS
from tests.waiting import until


def ticking():
    """Return a clock that has advanced by a millisecond each time it is asked."""
    return (number / 1000 for number in itertools.count()).__next__


@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_of_each_kind_has_the_total(site, fetch, kind):
    _, headers, _ = await fetch(await site(server_timing(clock=ticking()), handler=KINDS[kind]()))
    assert headers.getall("Server-Timing") == ["total;dur=1"]


async def test_spans_that_are_over_are_in_it_in_the_order_of_their_ends(site, fetch):
    unfinished = []

    async def handler(request: web.Request) -> web.Response:
        context = RequestContext.of(request)
        with timing(context, "outer", 'a "b"'), timing(context, "inner"):
            pass
        with pytest.raises(LookupError), timing(context, "failed"):
            raise LookupError
        unfinished.append(timing(context, "unfinished"))
        unfinished[-1].__enter__()
        return web.Response(headers={"Server-Timing": "own"})

    _, headers, _ = await fetch(await site(server_timing(total="all", clock=ticking()), handler=handler))
    metrics = r'all;dur=8, inner;dur=1, outer;dur=3;desc="a \"b\"", failed;dur=1'
    unfinished[0].__exit__(None, None, None)
    assert headers.getall("Server-Timing") == ["own", metrics]


async def test_a_stream_has_those_before_it_opens(site, fetch):
    @event_stream
    async def handler(context):
        with timing(context, "first"):
            pass
        yield "one"
        await until(lambda: context.committed)
        with timing(context, "second"):
            pass

    _, headers, _ = await fetch(await site(server_timing(clock=ticking()), handler=handler))
    assert headers["Server-Timing"] == "total;dur=3, first;dur=1"


async def test_a_function_decides_who_sees_it(site, fetch):
    async def handler(request: web.Request) -> web.Response:
        with timing(RequestContext.of(request), "span"):
            return web.Response()

    server = await site(server_timing(when=lambda context: "debug" in context.request.query), handler=handler)
    assert "Server-Timing" not in (await fetch(server))[1]
    assert "span;dur=" in (await fetch(server, path="/?debug"))[1]["Server-Timing"]


def test_without_the_interceptor_a_span_does_nothing():
    with timing(Context(), "span"):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"total": "a b"}, ValueError, "total is a token"),
        ({"when": 1}, TypeError, "when is a function, not 1"),
        ({"clock": 1}, TypeError, "clock is a function, not 1"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        server_timing(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1,), TypeError, "name is a str, not 1"),
        (("a;b",), ValueError, "name is a token"),
        (("a", "ü"), ValueError, "description is printable ASCII"),
    ],
)
def test_a_wrong_span_is_refused(arguments, error, message):
    with pytest.raises(error, match=message), timing(Context(), *arguments):
        pass
