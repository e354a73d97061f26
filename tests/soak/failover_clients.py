"""Who uses the application processes of the fail-over rig: they publish until it is acknowledged, and listen."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import ClientError, ClientSession, ClientTimeout

from aiohttp_interceptors import Decoder
from tests.soak.failover_ledger import TOPICS, Acknowledged, Item, item_of

WRITERS = 8
RATE = 100  # events a second of all writers, while nothing is in the way
ATTEMPT = 12.0  # seconds that an attempt to publish may take: twice what the Hub allows itself
SILENCE = 6.0  # seconds without a byte after which a client takes its connection for lost; heartbeats come each second
AGAIN = 0.2  # seconds until it reconnects, as the server's ``retry`` says
LOOK = 0.1  # seconds between two questions whether a process is ready
LOST = (ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)


class Publishers:
    """Publish by HTTP at any process, and again with the same idempotency key until that is acknowledged."""

    def __init__(self, session: ClientSession, urls: Sequence[str]) -> None:
        self._session = session
        self._urls = urls
        self._numbers = itertools.count(1)
        self._next = 0.0
        self.acknowledged: list[Acknowledged] = []
        self.pending: set[int] = set()
        """What was to be published, and has not been acknowledged."""
        self.answers: Counter[str] = Counter()
        """What attempts ended as."""
        self.longest = 0.0
        """Seconds that an attempt took, at most."""
        self.stopped = False

    async def run(self) -> None:
        """Go on until ``stopped``, and then until all is acknowledged."""
        await asyncio.gather(*(self._write(which) for which in range(WRITERS)))

    async def _write(self, which: int) -> None:
        while not self.stopped:
            number = next(self._numbers)
            self.pending.add(number)
            for attempt in itertools.count():
                if await self._attempt(number, self._urls[(which + attempt) % len(self._urls)]):
                    break
                await asyncio.sleep(0.05)
            self.pending.discard(number)
            now = time.monotonic()
            self._next = max(now, self._next + 1 / RATE)
            await asyncio.sleep(self._next - now)

    async def _attempt(self, number: int, url: str) -> bool:
        began = time.monotonic()
        query = {"number": str(number), "topic": TOPICS[number % len(TOPICS)]}
        try:
            async with self._session.post(f"{url}/publish", params=query, timeout=ClientTimeout(ATTEMPT)) as response:
                answer = await response.json()
        except LOST as error:
            self.answers[type(error).__name__] += 1
            return False
        except ValueError:  # an error page
            self.answers["no answer of ours"] += 1
            return False
        now = time.monotonic()
        self.longest = max(self.longest, now - began)
        if response.status != 200:
            self.answers[answer["error"]] += 1
            return False
        self.answers["acknowledged"] += 1
        self.acknowledged.append(Acknowledged(number, answer["id"], began, now))
        return True


class Listener:
    """A client as a browser's ``EventSource``: it reconnects with the last id, also to another process."""

    def __init__(
        self,
        session: ClientSession,
        urls: Sequence[str],
        process: int,
        stay: tuple[float, float] | None,
        chance: random.Random,
    ) -> None:
        self._session = session
        self._urls = urls
        self._stay = stay
        self._chance = chance
        self._last_id = ""
        self._process = process
        self.items: list[Item] = []
        self.connected = asyncio.Event()
        """Set once the first connection has an id to return with."""
        self.problems: list[str] = []

    async def run(self) -> None:
        """Go on until cancelled. A client that does not stay changes the process each time it gives up a connection."""
        while True:
            try:
                async with asyncio.timeout(None if self._stay is None else self._chance.uniform(*self._stay)):
                    await self._listen(self._urls[self._process])
            except LOST:
                pass
            if self._stay is not None:
                self._process = (self._process + 1) % len(self._urls)
            await asyncio.sleep(AGAIN)

    async def _listen(self, url: str) -> None:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Pragma": "no-cache"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        limit = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        async with self._session.get(f"{url}/events", headers=headers, timeout=limit) as response:
            if response.status != 200:
                return
            decoder, opened = Decoder(), 0.0
            async for data in response.content.iter_any():
                now = time.monotonic()
                for event in decoder.feed(data):
                    opened = opened or now
                    if event.id is not None:
                        self._last_id = event.id
                        self.connected.set()
                    try:
                        item = item_of(event, self._last_id, now, self._process, opened)
                    except ValueError as error:
                        self.problems.append(str(error))
                        continue
                    if item is not None:
                        self.items.append(item)


async def watch(session: ClientSession, url: str, answers: list[tuple[float, bool]]) -> None:
    """Ask a process whether it is ready, until cancelled."""
    while True:
        try:
            async with session.get(f"{url}/ready", timeout=ClientTimeout(SILENCE)) as response:
                answers.append((time.monotonic(), response.status == 200))
        except LOST:
            pass
        await asyncio.sleep(LOOK)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], limit: float) -> bool:
    """Wait until a condition holds, ``limit`` seconds at most, and return whether it does."""
    deadline = time.monotonic() + limit
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds or time.monotonic() > deadline:
            return holds
        await asyncio.sleep(0.05)
