"""What a server's process holds: if it is more than before the clients came, something leaked."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import psutil

from aiohttp_interceptors import Hub, Streams
from aiohttp_interceptors.web.timers import timer_queue, turn

LIBRARY = "aiohttp_interceptors"
# What aiohttp has for a connection or a request.
OTHERS = {"RequestHandler", "Request", "StreamWriter", "StreamResponse"}
# What a Hub has of its history, which is more or less at any moment, and for as many clients as there are.
HISTORY = {"Record", "Event", "Reading"}


def census(streams: Streams, *hubs: Hub) -> dict[str, int]:
    """Count tasks, timers, files, streams, subscribers, places, and objects by class, after garbage collection."""
    loop = asyncio.get_running_loop()
    visits = timer_queue()._expected
    turn()  # both are made when first needed, one for each loop, and stay
    gc.collect()
    held: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        held[f"task {getattr(task.get_coro(), '__qualname__', '?')}"] += 1
    uvloop_timers = 0
    for thing in gc.get_objects():
        kind = type(thing)
        module = getattr(kind, "__module__", None)
        if not isinstance(module, str):
            continue
        if module.startswith(LIBRARY) or (module.startswith("aiohttp.") and kind.__name__ in OTHERS):
            held[f"object {kind.__name__}"] += 1
        elif kind.__name__ == "TimerHandle" and module.startswith("uvloop"):
            uvloop_timers += 1
    scheduled = getattr(loop, "_scheduled", None)
    if scheduled is None:
        held["timers"] = uvloop_timers
    else:
        held["timers"] = sum(not handle.cancelled() for handle in scheduled)
    held["visits"] = visits
    held["files"] = psutil.Process().num_fds()
    held["open streams"] = len(streams)
    held["places taken"] = streams._limits.taken
    held["keys with places"] = len(streams._limits._of_each)
    for number, hub in enumerate(hubs):
        statistics = hub.statistics()
        held[f"subscribers of hub {number}"] = statistics.subscribers
        held[f"behind in hub {number}"] = statistics.behind
        held[f"audiences of hub {number}"] = statistics.audiences
        held[f"names asked for in hub {number}"] = len(hub._fanout._patterns)
    return {name: number for name, number in held.items() if not hubs or name.removeprefix("object ") not in HISTORY}


def growth(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """Return what there is more of."""
    return {name: number - before.get(name, 0) for name, number in now.items() if number > before.get(name, 0)}


async def until_calm(streams: Streams, before: dict[str, int], patience: float, *hubs: Hub) -> dict[str, int]:
    """Wait until there is no more than before, or patience is over; return what there is more of."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while True:
        more = growth(before, census(streams, *hubs))
        if not more or loop.time() > end:
            return more
        await asyncio.sleep(0.1)
        for _ in range(3):
            await asyncio.sleep(0)  # uvloop forgets the timer of our own sleep some turns later
