"""Tables of the figures of each peer, and of the ratios with their goals."""

from __future__ import annotations

import operator
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

from .figures import Figures
from .peers import AIOHTTP_SSE, BARE, BARE_UVLOOP, FLOOR, NCHAN, OURS, OURS_UVLOOP, Missing, Peer

COLUMNS = {
    "one 100": "100 streams, µs",
    "one 1000": "1,000 streams, µs",
    "one 8000": "8,000 streams, µs",
    "burst": "burst of 50, µs",
    "open": "open, µs",
    "close": "close, µs",
    "reconnect": "reconnect, µs",
    "memory": "idle stream, KiB",
    "memory again": "… that reconnected, KiB",
    "latency p50": "latency p50, ms",
    "latency p99": "p99, ms",
    "reading p99": "p99 of large events, ms",
    "stopped p99": "… with 100 stopped, ms",
    "without metrics": "1,000 streams without metrics, µs",
    "with metrics": "… with Prometheus, µs",
}


class Goal(NamedTuple):
    """A goal for a ratio or a difference."""

    title: str
    bound: float
    unit: str
    reached: list[float]  # one per round


def goals(figures: Figures) -> Iterator[Goal]:
    """Yield the goals, with the values of all rounds."""

    def ratio(column: str, mine: Peer, peer: Peer) -> list[float]:
        return figures.map_rounds(operator.truediv, (column, mine.name), (column, peer.name))

    def growth(mine: Peer) -> list[float]:
        columns = [(column, peer.name) for peer in (mine, FLOOR) for column in ("one 100", "one 8000")]
        return figures.map_rounds(lambda few, many, c_few, c_many: many / few / (c_many / c_few), *columns)

    both = (OURS, OURS_UVLOOP)
    yield Goal("one at a time: ours on asyncio against aiohttp-sse", 0.38, " x", ratio("one 1000", OURS, AIOHTTP_SSE))
    yield Goal("… on asyncio against nchan", 1.15, " x", ratio("one 1000", OURS, NCHAN))
    yield Goal("… on uvloop against nchan", 1.0, " x", ratio("one 1000", OURS_UVLOOP, NCHAN))
    yield Goal("… on uvloop against the C program", 1.7, " x", ratio("one 1000", OURS_UVLOOP, FLOOR))
    for mine in both:
        yield Goal(f"growth from 100 to 8,000 streams: {mine.name} against C's own", 1.3, " x", growth(mine))
    yield Goal("burst of 50: ours on asyncio against aiohttp-sse", 0.06, " x", ratio("burst", OURS, AIOHTTP_SSE))
    more = figures.map_rounds(operator.sub, ("memory", OURS.name), ("memory", BARE.name))
    yield Goal("memory of an open stream: ours on asyncio over a bare StreamResponse", 1.5, " KiB", more)
    more = figures.map_rounds(operator.sub, ("memory again", OURS.name), ("memory", BARE.name))
    yield Goal("… of one that reconnected with 100 events", 1.8, " KiB", more)
    yield Goal("open: ours on asyncio against a bare StreamResponse", 1.65, " x", ratio("open", OURS, BARE))
    yield Goal("… on uvloop against the same on uvloop", 1.65, " x", ratio("open", OURS_UVLOOP, BARE_UVLOOP))
    again = figures.map_rounds(operator.truediv, ("reconnect", OURS.name), ("open", BARE.name))
    yield Goal("reconnect with 100 events: ours on asyncio against opening a bare StreamResponse", 1.65, " x", again)
    yield Goal("close: ours on asyncio against a bare StreamResponse", 1.6, " x", ratio("close", OURS, BARE))
    counted = figures.map_rounds(operator.truediv, ("with metrics", OURS.name), ("without metrics", OURS.name))
    yield Goal("one at a time: with Prometheus metrics against without", 1.03, " x", counted)
    for mine in both:
        slower = figures.map_rounds(operator.truediv, ("stopped p99", mine.name), ("reading p99", mine.name))
        yield Goal(f"p99 of 900 with 100 stopped against none stopped: {mine.name}", 1.2, " x", slower)


def spread(values: Sequence[float]) -> str:
    """Format a median and the range of the values."""
    return f"{median(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def figure(value: float | None) -> str:
    """Format a value with three digits, or a hyphen for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def tables(figures: Figures, peers: Sequence[Peer]) -> list[str]:
    """Return the lines of both tables."""
    columns = [column for column in COLUMNS if any(figures.rounds(column, peer.name) for peer in peers)]
    rows = [
        [peer.name, *(figure(figures.median(column, peer.name)) for column in columns)]
        for peer in peers
        if any(figures.rounds(column, peer.name) for column in columns)
    ]
    lines = table(["", *(COLUMNS[column] for column in columns)], rows)
    lines += ["", *(f"Without {name}: {reason}." for name, reason in figures.skipped.items())]
    if figures.max_load:
        lines.append(f"At the fixed rate the load used at most {figures.max_load:.0%} of its core.")
    lines.append("")
    compared = [
        [title, f"{bound}{unit}", spread(reached), "ok" if median(reached) <= bound else "MISSED"]
        for title, bound, unit, reached in goals(figures)
        if reached
    ]
    return lines + (table(["case", "at most", "reached", ""], compared) if compared else [])


def environment(peers: Sequence[Peer], rounds: int) -> list[str]:
    """Return lines with the date, the system and the versions."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()}"
    lines = [f"{datetime.now(UTC):%Y-%m-%d}, {system}, {python}; medians of {rounds} rounds.", ""]
    for peer in peers:
        try:
            lines.append(f"- {peer.name}: {peer.version()}")
        except (Missing, OSError):
            lines.append(f"- {peer.name}: missing")
    return [*lines, ""]
