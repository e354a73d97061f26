"""Encoding of events: events per CPU second, compared with aiohttp-sse's formatting of the same events.

The formatting of aiohttp-sse is compiled from its source: the body of ``EventSourceResponse.send`` up to the ``try``
that contains the write. This excludes the coroutine and ``asyncio.timeout``, which cost several times as much, so it is
the most favourable comparison for aiohttp-sse. Before the measurement, the bytes are compared with those of a real
``send``. Its lines end with CRLF, which is its default, and ours with LF.

This library is measured twice: with a new event each time, as in a producer, and with an existing event. One process,
short interleaved rounds, CPU time, the best round of each.

    python benchmarks/wire.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import inspect
import textwrap
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import aiohttp_sse
from aiohttp_sse import EventSourceResponse
from comparing.rows import Row, print_rows

from aiohttp_interceptors import Event, encode

ROUNDS = 200
EVENTS = 500  # a round takes one or two milliseconds, so that some rounds are not interrupted
GOAL = 3.0  # ratio to aiohttp-sse, for encoding 100 bytes of data

Format = Callable[[EventSourceResponse, str, str | None, str | None], bytes]


class Case(NamedTuple):
    """The fields of an event."""

    title: str
    data: str
    name: str | None = None
    id: str | None = None


CASES = [
    Case("100 bytes", "x" * 100),
    Case("with name and id", "x" * 100, "tick", "42"),
    Case("in four lines", "\n".join(["x" * 24] * 4) + "\n"),
    Case("not ASCII", "ü" * 50),
]


class Sink(EventSourceResponse):
    """A response that stores what would be sent."""

    written = b""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Store the data."""
        self.written = bytes(data)


def formatting_of_aiohttp_sse() -> Format:
    """Compile a function from the part of ``EventSourceResponse.send`` before the write."""
    module = ast.parse(textwrap.dedent(inspect.getsource(EventSourceResponse.send)))
    send = module.body[0]
    assert isinstance(send, ast.AsyncFunctionDef)
    write = next(index for index, statement in enumerate(send.body) if isinstance(statement, ast.Try))
    result = ast.parse("def f():\n  return buffer.getvalue().encode('utf-8')").body[0]
    assert isinstance(result, ast.FunctionDef)
    result.name, result.args, result.body[:0] = "formatted", send.args, send.body[:write]
    module.body = [result]
    names = dict(vars(aiohttp_sse))
    exec(compile(ast.fix_missing_locations(module), aiohttp_sse.__file__, "exec"), names)  # noqa: S102  # code of aiohttp-sse
    return cast("Format", names["formatted"])


async def sent_by_aiohttp_sse(case: Case) -> bytes:
    """Return the bytes that a real ``send`` writes."""
    sink = Sink()
    await sink.send(case.data, case.id, case.name)
    return sink.written


def seconds(function: Callable[[], bytes]) -> float:
    """Return the CPU seconds per event of one round."""
    started = time.process_time()
    for _ in range(EVENTS):
        function()
    return (time.process_time() - started) / EVENTS


def measure(case: Case, formatted: Format, count: int) -> dict[str, float]:
    """Return the CPU seconds per event of each variant."""
    _, data, name, number = case
    response, prebuilt = EventSourceResponse(), Event(data, name, number)
    assert formatted(response, data, number, name) == asyncio.run(sent_by_aiohttp_sse(case))
    variants: dict[str, Callable[[], bytes]] = {
        "theirs": lambda: formatted(response, data, number, name),
        "new": lambda: encode(Event(data, name, number)),
        "prebuilt": lambda: encode(prebuilt),
    }
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(count):
        for variant, function in variants.items():
            best[variant] = min(best[variant], seconds(function))
    return best


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure how many events are encoded per CPU second.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less exact")
    parser.add_argument("--json", action="store_true", help="print ours as one line for compare.py")
    options = parser.parse_args()
    count = ROUNDS // 4 if options.quick else ROUNDS
    formatted = formatting_of_aiohttp_sse()
    if options.json:
        measured = [(case.title, measure(case, formatted, count)) for case in CASES]
        print_rows(
            [
                Row(f"{title}: {name}", best[variant] * 1e9, "ns")
                for title, best in measured
                for variant, name in (("new", "Event and encode"), ("prebuilt", "encode alone"))
            ]
        )
        return
    print("events per CPU second   aiohttp-sse   Event and encode           encode alone")
    for case in CASES:
        best = measure(case, formatted, count)
        theirs, new, prebuilt = best["theirs"], best["new"], best["prebuilt"]
        print(
            f"{case.title:20}  {1 / theirs:13,.0f}  {1 / new:10,.0f} ({theirs / new:4.1f} x)"
            f"  {1 / prebuilt:12,.0f} ({theirs / prebuilt:4.1f} x)"
        )
    print(f"goal: {GOAL} x for encoding 100 bytes")


if __name__ == "__main__":
    main()
