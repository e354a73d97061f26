"""Counts of what a server process holds. More than before the clients connected is a leak."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import psutil

from aiohttp_interceptors import Hub, Streams
from aiohttp_interceptors.web.timers import flush_queue, timer_queue

LIBRARY = "aiohttp_interceptors"
# Classes of aiohttp with one object a connection or a request.
AIOHTTP_CLASSES = {"RequestHandler", "Request", "StreamWriter", "StreamResponse"}
# Classes of a Hub's history, whose number changes all the time, whatever the number of clients.
HISTORY_CLASSES = {"Record", "Event", "ReadResult"}
# Classes with an object for each kind of stream, which the process keeps, and of which there are at most 64.
KIND_CLASSES = {"_UsualHeaders"}


def count_resources(streams: Streams, *hubs: Hub) -> dict[str, int]:
    """Count tasks, timers, files, streams, slots, subscribers, and objects by class, after garbage collection."""
    loop = asyncio.get_running_loop()
    active_timers = timer_queue()._active
    flush_queue()  # both queues are created when first used, one per event loop
    gc.collect()
    counts: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        counts[f"task {getattr(task.get_coro(), '__qualname__', '?')}"] += 1
    uvloop_timers = 0
    for thing in gc.get_objects():
        kind = type(thing)
        module = getattr(kind, "__module__", None)
        if not isinstance(module, str):
            continue
        if kind.__name__ in KIND_CLASSES:
            continue
        if module.startswith(LIBRARY) or (module.startswith("aiohttp.") and kind.__name__ in AIOHTTP_CLASSES):
            counts[f"object {kind.__name__}"] += 1
        elif kind.__name__ == "TimerHandle" and module.startswith("uvloop"):
            uvloop_timers += 1
    scheduled = getattr(loop, "_scheduled", None)
    if scheduled is None:
        counts["timers"] = uvloop_timers
    else:
        counts["timers"] = sum(not handle.cancelled() for handle in scheduled)
    counts["active timers of the timer queue"] = active_timers
    counts["files"] = psutil.Process().num_fds()
    counts["open streams"] = len(streams)
    counts["slots in use"] = streams._limits.in_use
    counts["keys with slots"] = len(streams._limits._in_use_by_key)
    for number, hub in enumerate(hubs):
        statistics = hub.statistics()
        counts[f"subscribers of hub {number}"] = statistics.subscribers
        counts[f"subscribers catching up in hub {number}"] = statistics.catching_up
        counts[f"subscriber groups of hub {number}"] = statistics.groups
        counts[f"patterns of hub {number}"] = len(hub._dispatcher._patterns)
    return {
        name: count for name, count in counts.items() if not hubs or name.removeprefix("object ") not in HISTORY_CLASSES
    }


async def count_baseline(streams: Streams, *hubs: Hub) -> dict[str, int]:
    """Count three times, and return the largest counts: a task whose sleep has just ended has no timer."""
    largest: Counter[str] = Counter()
    for _ in range(3):
        await asyncio.sleep(0.05)
        largest |= Counter(count_resources(streams, *hubs))
    return largest


def growth(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """Return the counts that grew, and by how much."""
    return {name: number - before.get(name, 0) for name, number in now.items() if number > before.get(name, 0)}


async def wait_released(streams: Streams, before: dict[str, int], max_seconds: float, *hubs: Hub) -> dict[str, int]:
    """Wait until all counts are as before or ``max_seconds`` passed. Return the counts that grew."""
    loop = asyncio.get_running_loop()
    end = loop.time() + max_seconds
    while True:
        more = growth(before, count_resources(streams, *hubs))
        if not more or loop.time() > end:
            return more
        await asyncio.sleep(0.1)
        for _ in range(3):
            await asyncio.sleep(0)  # uvloop releases the timer of the sleep some iterations later
