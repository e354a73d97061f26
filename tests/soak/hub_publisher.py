"""What is published in the soak of the Hub, and the ledger of it. Client and server make the same text of a number."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import Future
from typing import TextIO

from aiohttp_interceptors import Event, Hub

TICK = 0.1  # seconds between two looks of who publishes
KEYS = ("k1", "k2", "k3")
CHANGING = tuple(f"s.{number}" for number in range(5))  # that open streams take and give back
TOPICS = (*(f"{a}.{b}{c}" for a in "abc" for b in "xyz" for c in ("", ".1", ".2")), *CHANGING)
HISTORY, AGE = (50, 5, 200), (None, None, 1.5)  # of each hub: enough for most, too little, and too short
FILL = 50  # records of each topic, at the start
BURST = 40


def text(number: int, topic: str, key: str) -> str:
    """Make an event's data: of all sizes that matter, and now and then of several lines."""
    size = 6000 if number % 40 == 0 else number * 7919 % 700
    line = f"{number} {topic} {key} " + "0123456789abcdef" * (size // 16)
    return line + "\n\nend" if number % 7 == 0 else line


class Publisher:
    """Publish for ever, in the event loop and from a thread, and write down what the Hub said to each event."""

    def __init__(self, hubs: list[Hub], epoch: int, file: TextIO) -> None:
        self._hubs = hubs
        self._epoch = epoch
        self._file = file
        self._number = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._outside)

    async def begin(self) -> None:
        """Fill the history, so that it does not look like a leak later, and go on in a thread."""
        for hub, _ in enumerate(self._hubs):
            for topic in TOPICS * FILL:
                await self._inside(hub, topic, "-", ephemeral=False)
        self._thread.start()

    async def run(self) -> None:
        """Publish single events and bursts in the event loop."""
        chance = random.Random(f"loop {self._epoch}")
        while True:
            await asyncio.sleep(chance.uniform(0, 2 * TICK))
            for hub, _ in enumerate(self._hubs):
                topic = chance.choice(TOPICS)
                burst = chance.random() < 0.04
                for _ in range(BURST if burst else chance.randint(0, 8)):
                    topic = topic if burst and chance.random() < 0.7 else chance.choice(TOPICS)
                    await self._inside(hub, topic, *self._kind(chance))

    def stop(self) -> None:
        """End the thread; not to be called in it."""
        self._over.set()

    @property
    def stopped(self) -> bool:
        return not self._thread.is_alive()

    def change(self, token: str, verb: str, topic: str, before: int, after: int) -> None:
        """Write down that a stream's topics have changed, at one of these positions."""
        with self._lock:  # the thread writes too, and a text file is of one thread
            self._file.write(f"{verb} {token} {topic} {before} {after}\n")

    def _kind(self, chance: random.Random) -> tuple[str, bool]:
        return chance.choice(KEYS) if chance.random() < 0.5 else "-", chance.random() < 0.1

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    async def _inside(self, hub: int, topic: str, key: str, ephemeral: bool) -> None:
        number = self._next()
        event = Event(text(number, topic, key), name="passing" if ephemeral else None)
        given = await self._hubs[hub].publish(topic, event, key=None if key == "-" else key, ephemeral=ephemeral)
        self._write(hub, number, topic, key, given)

    def _outside(self) -> None:
        chance = random.Random(f"thread {self._epoch}")
        while not self._over.wait(chance.uniform(0, 2 * TICK)):
            for hub, there in enumerate(self._hubs):
                for _ in range(chance.randint(0, 8)):
                    topic, (key, ephemeral), number = chance.choice(TOPICS), self._kind(chance), self._next()
                    event = Event(text(number, topic, key), name="passing" if ephemeral else None)
                    future = there.publish_threadsafe(
                        topic, event, key=None if key == "-" else key, ephemeral=ephemeral
                    )
                    future.add_done_callback(self._noted(hub, number, topic, key))
                    if chance.random() < 0.1:
                        future.result()
                    del future  # or the census finds the last one

    def _noted(self, hub: int, number: int, topic: str, key: str):
        def note(
            future: Future[str | None],
        ) -> None:  # called in the moment of publishing, or a bit later in the thread
            self._write(hub, number, topic, key, future.result())

        return note

    def _write(self, hub: int, number: int, topic: str, key: str, given: str | None) -> None:
        there, late = self._hubs[hub].history, threading.current_thread() is self._thread
        epoch, offset = (there.epoch, 0 if late else there.end) if given is None else given.rsplit("-", 1)
        with self._lock:
            self._file.write(
                f"published {epoch} {hub} {offset} {int(given is None)} {number} {time.monotonic()} {topic} {key}\n"
            )
