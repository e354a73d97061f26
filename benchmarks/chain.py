"""What ten interceptors add to a request, against what ten nested aiohttp middlewares doing the same add.

Each has a part before the handler and a part after it that count. One process, no socket, the three ways interleaved
in small rounds, CPU time, the median of the rounds' ratios: a disturbance meets all three alike.

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
REQUESTS = 500  # a round is a few milliseconds, so that some rounds are disturbed by nobody

Call = Callable[[web.Request], Awaitable[web.StreamResponse]]
RESPONSE = web.Response()
tally = [0, 0]


class Writer:
    """As much of aiohttp's writer as a request without a connection has."""

    output_size = 0

    def __init__(self) -> None:
        self._headers_buf: bytes | None = None
        self._headers_written = False


async def handler(request: web.Request) -> web.StreamResponse:
    """Answer."""
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
    """Ten middlewares, one in the other."""
    call: Call = handler
    for _ in range(LINKS):
        call = wrapped(middleware, call)
    return call


def ten_interceptors() -> Call:
    """Ten interceptors in one middleware."""
    return wrapped(interceptor_middleware(*(Interceptor(f"link-{n}", enter, leave) for n in range(LINKS))), handler)


async def measure(count: int) -> list[dict[str, float]]:
    """Return the CPU seconds per request of each way, round by round."""
    request = make_mocked_request("GET", "/", writer=Writer())
    ways = {"handler": handler, "middlewares": ten_middlewares(), "interceptors": ten_interceptors()}
    rounds: list[dict[str, float]] = []
    for _ in range(count):
        rounds.append(took := {})
        for name, call in ways.items():
            began = time.process_time()
            for _ in range(REQUESTS):
                await call(request)
            took[name] = (time.process_time() - began) / REQUESTS
    return rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what ten interceptors add to a request.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--json", action="store_true", help="print ours as one line for compare.py")
    options = parser.parse_args()
    rounds = asyncio.run(measure(ROUNDS // 5 if options.quick else ROUNDS))
    theirs = [took["middlewares"] - took["handler"] for took in rounds]
    ours = [took["interceptors"] - took["handler"] for took in rounds]
    ratio = median(mine / yours for mine, yours in zip(ours, theirs, strict=True))
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
    print(f"ratio                {ratio:6.2f}   (goal: at most 1.35)")


if __name__ == "__main__":
    main()
