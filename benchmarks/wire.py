"""Events to bytes: how many per CPU second, against aiohttp-sse's formatting of the same events.

What aiohttp-sse does before it writes is compiled from its own source: the body of ``EventSourceResponse.send`` up to
the ``try`` that holds the write, and then what it writes. That leaves out what only that method has to do
(``asyncio.timeout`` and a coroutine cost it several times as much again): it is the comparison that is best for it.
Before anything is measured, the bytes are compared to those of a real ``send``. Its lines end with CRLF, as they do by
default, and ours with LF.

We are measured twice: with the event made anew each time, which is what a producer pays, and with one that is there
already. One process, all ways interleaved in small rounds, CPU time, the best round of each.

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
EVENTS = 500  # a round is less than a millisecond or two, so that some rounds are disturbed by nobody
GOAL = 3.0  # times as many as aiohttp-sse, for encoding 100 bytes of data

Format = Callable[[EventSourceResponse, str, str | None, str | None], bytes]


class Case(NamedTuple):
    """What is sent."""

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
    """A response whose client is a variable."""

    written = b""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep what would be sent."""
        self.written = bytes(data)


def formatting_of_aiohttp_sse() -> Format:
    """Make a function of what ``EventSourceResponse.send`` does before it writes."""
    module = ast.parse(textwrap.dedent(inspect.getsource(EventSourceResponse.send)))
    send = module.body[0]
    assert isinstance(send, ast.AsyncFunctionDef)
    writing = next(at for at, statement in enumerate(send.body) if isinstance(statement, ast.Try))
    result = ast.parse("def f():\n  return buffer.getvalue().encode('utf-8')").body[0]
    assert isinstance(result, ast.FunctionDef)
    result.name, result.args, result.body[:0] = "formatted", send.args, send.body[:writing]
    module.body = [result]
    names = dict(vars(aiohttp_sse))
    exec(compile(ast.fix_missing_locations(module), aiohttp_sse.__file__, "exec"), names)  # noqa: S102  # theirs
    return cast("Format", names["formatted"])


async def sent_by_aiohttp_sse(case: Case) -> bytes:
    """Return what a real ``send`` writes."""
    sink = Sink()
    await sink.send(case.data, case.id, case.name)
    return sink.written


def seconds(way: Callable[[], bytes]) -> float:
    """Return the CPU seconds per event of one round."""
    began = time.process_time()
    for _ in range(EVENTS):
        way()
    return (time.process_time() - began) / EVENTS


def measure(case: Case, formatted: Format, count: int) -> dict[str, float]:
    """Return the CPU seconds per event of each way."""
    _, data, name, number = case
    response, prebuilt = EventSourceResponse(), Event(data, name, number)
    assert formatted(response, data, number, name) == asyncio.run(sent_by_aiohttp_sse(case))
    ways: dict[str, Callable[[], bytes]] = {
        "theirs": lambda: formatted(response, data, number, name),
        "made": lambda: encode(Event(data, name, number)),
        "prebuilt": lambda: encode(prebuilt),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(count):
        for title, way in ways.items():
            best[title] = min(best[title], seconds(way))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how many events are encoded in a CPU second.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--json", action="store_true", help="print ours as one line for compare.py")
    options = parser.parse_args()
    count = ROUNDS // 4 if options.quick else ROUNDS
    formatted = formatting_of_aiohttp_sse()
    if options.json:
        measured = [(case.title, measure(case, formatted, count)) for case in CASES]
        print_rows(
            [
                Row(f"{title}: {way}", best[key] * 1e9, "ns")
                for title, best in measured
                for key, way in (("made", "Event and encode"), ("prebuilt", "encode alone"))
            ]
        )
        return
    print("events per CPU second   aiohttp-sse   Event and encode           encode alone")
    for case in CASES:
        best = measure(case, formatted, count)
        theirs, made, prebuilt = best["theirs"], best["made"], best["prebuilt"]
        print(
            f"{case.title:20}  {1 / theirs:13,.0f}  {1 / made:10,.0f} ({theirs / made:4.1f} x)"
            f"  {1 / prebuilt:12,.0f} ({theirs / prebuilt:4.1f} x)"
        )
    print(f"goal: {GOAL} x for encoding 100 bytes")


if __name__ == "__main__":
    main()
