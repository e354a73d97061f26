"""CPU that ten interceptors add to a request, compared with ten nested aiohttp middlewares that do the same.

Each of them increments a counter before and after the handler. One process, no socket. The variants are measured in
short interleaved rounds, so that a busy machine affects all of them; the result is the median of the rounds' ratios.

    python benchmarks/chain.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial, update_wrapper
from statistics import median

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Middleware
from comparing.rows import Row, print_rows

from aiohttp_interceptors import Context, Interceptor, interceptor_middleware

LINKS = 10
ROUNDS = 300
REQUESTS = 500  # a round takes a few milliseconds, so that some rounds are not interrupted
GOAL = 1.35  # ratio

Call = Callable[[web.Request], Awaitable[web.StreamResponse]]
RESPONSE = web.Response()
tally = [0, 0]


class Writer:
    """The attributes of aiohttp's writer that a request without a connection needs."""

    output_size = 0

    def __init__(self) -> None:
        self._headers_buf: bytes | None = None
        self._headers_written = False


async def handler(request: web.Request) -> web.StreamResponse:
    """Return a response."""
    return RESPONSE


def enter(context: Context) -> None:
    """Count before the handler."""
    tally[0] += 1


def leave(context: Context) -> None:
    """Count after the handler."""
    tally[1] += 1


@web.middleware
async def middleware(request: web.Request, handler: Call) -> web.StreamResponse:
    """Count before and after the handler."""
    tally[0] += 1
    response = await handler(request)
    tally[1] += 1
    return response


def wrapped(outer: Middleware, inner: Call) -> Call:
    """Nest as ``web.Application`` does."""
    return update_wrapper(partial(outer, handler=inner), inner)


def ten_middlewares() -> Call:
    """Return a handler with ten nested middlewares."""
    call: Call = handler
    for _ in range(LINKS):
        call = wrapped(middleware, call)
    return call


def ten_interceptors() -> Call:
    """Return a handler with ten interceptors in one middleware."""
    return wrapped(interceptor_middleware(*(Interceptor(f"link-{n}", enter, leave) for n in range(LINKS))), handler)


async def measure(count: int) -> list[dict[str, float]]:
    """Return the CPU seconds per request of each variant, round by round."""
    request = make_mocked_request("GET", "/", writer=Writer())
    variants = {"handler": handler, "middlewares": ten_middlewares(), "interceptors": ten_interceptors()}
    rounds: list[dict[str, float]] = []
    for _ in range(count):
        rounds.append(seconds := {})
        for name, call in variants.items():
            started = time.process_time()
            for _ in range(REQUESTS):
                await call(request)
            seconds[name] = (time.process_time() - started) / REQUESTS
    return rounds


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the CPU that ten interceptors add to a request.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less exact")
    parser.add_argument("--json", action="store_true", help="print ours as one line for compare.py")
    options = parser.parse_args()
    rounds = asyncio.run(measure(ROUNDS // 5 if options.quick else ROUNDS))
    theirs = [seconds["middlewares"] - seconds["handler"] for seconds in rounds]
    ours = [seconds["interceptors"] - seconds["handler"] for seconds in rounds]
    ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
    if options.json:
        print_rows(
            [
                Row(f"{LINKS} interceptors add to a request", median(ours) * 1e6, "µs"),
                Row(f"{LINKS} interceptors against {LINKS} middlewares", ratio, "x"),
            ]
        )
        return
    print(f"{LINKS} middlewares add   {median(theirs) * 1e6:6.2f} µs of CPU to a request")
    print(f"{LINKS} interceptors add  {median(ours) * 1e6:6.2f} µs")
    print(f"ratio                {ratio:6.2f}   (goal: at most {GOAL})")


if __name__ == "__main__":
    main()
