"""Publishes events to Hubs and writes a ledger of them. Client and server compute the same text from a number."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TextIO

from aiohttp_interceptors import Event, Hub

INTERVAL = 0.1  # seconds between two publications, on average
KEYS = ("k1", "k2", "k3")
CHANGING = tuple(f"s.{number}" for number in range(5))  # topics that open streams add and remove
TOPICS = (*(f"{a}.{b}{c}" for a in "abc" for b in "xyz" for c in ("", ".1", ".2")), *CHANGING)
HISTORY, HISTORY_AGE = (50, 5, 200), (None, None, 1.5)  # of each Hub: usually enough, too few records, too short
INITIAL_RECORDS = 50  # of each topic
BURST = 40


def text(number: int, topic: str, key: str) -> str:
    """Return the data of an event. Sizes vary, and some have several lines."""
    size = 6000 if number % 40 == 0 else number * 7919 % 700
    line = f"{number} {topic} {key} " + "0123456789abcdef" * (size // 16)
    return line + "\n\nend" if number % 7 == 0 else line


class Publisher:
    """Publishes in the event loop and from a thread, and writes the ID of each event to the ledger."""

    def __init__(self, hubs: list[Hub], epoch: int, file: TextIO) -> None:
        self._hubs = hubs
        self._epoch = epoch
        self._file = file
        self._number = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish_in_thread)

    async def start(self) -> None:
        """Fill the history, so that its growth does not look like a leak, and start the thread."""
        for hub, _ in enumerate(self._hubs):
            for topic in TOPICS * INITIAL_RECORDS:
                await self._publish(hub, topic, "-", ephemeral=False)
        self._thread.start()

    async def run(self) -> None:
        """Publish single events and bursts in the event loop, until cancelled."""
        rng = random.Random(f"loop {self._epoch}")
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * INTERVAL))
            for hub, _ in enumerate(self._hubs):
                topic = rng.choice(TOPICS)
                burst = rng.random() < 0.04
                for _ in range(BURST if burst else rng.randint(0, 8)):
                    topic = topic if burst and rng.random() < 0.7 else rng.choice(TOPICS)
                    await self._publish(hub, topic, *self._key_and_ephemeral(rng))

    def stop(self) -> None:
        """Stop the thread. Not to be called in it."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return not self._thread.is_alive()

    def write_topic_change(self, token: str, verb: str, topic: str, earliest: int, latest: int) -> None:
        """Write that the topics of a stream changed, at an offset between these two."""
        with self._lock:  # the thread writes to the file too
            self._file.write(f"{verb} {token} {topic} {earliest} {latest}\n")

    def _key_and_ephemeral(self, rng: random.Random) -> tuple[str, bool]:
        return rng.choice(KEYS) if rng.random() < 0.5 else "-", rng.random() < 0.1

    def _next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    async def _publish(self, hub: int, topic: str, key: str, ephemeral: bool) -> None:
        number = self._next_number()
        event = Event(text(number, topic, key), name="ephemeral" if ephemeral else None)
        event_id = await self._hubs[hub].publish(topic, event, key=None if key == "-" else key, ephemeral=ephemeral)
        self._write_published(hub, number, topic, key, event_id)

    def _publish_in_thread(self) -> None:
        rng = random.Random(f"thread {self._epoch}")
        while not self._stop.wait(rng.uniform(0, 2 * INTERVAL)):
            for index, hub in enumerate(self._hubs):
                for _ in range(rng.randint(0, 8)):
                    topic, (key, ephemeral), number = (
                        rng.choice(TOPICS),
                        self._key_and_ephemeral(rng),
                        self._next_number(),
                    )
                    event = Event(text(number, topic, key), name="ephemeral" if ephemeral else None)
                    future = hub.publish_threadsafe(topic, event, key=None if key == "-" else key, ephemeral=ephemeral)
                    future.add_done_callback(self._on_published(index, number, topic, key))
                    if rng.random() < 0.1:
                        future.result()
                    del future  # otherwise the last one would be counted as a leak

    def _on_published(self, hub: int, number: int, topic: str, key: str) -> Callable[[Future[str | None]], None]:
        def write(future: Future[str | None]) -> None:  # called while publishing, or later in the thread
            self._write_published(hub, number, topic, key, future.result())

        return write

    def _write_published(self, hub: int, number: int, topic: str, key: str, event_id: str | None) -> None:
        """Write an event to the ledger. An ephemeral event has the offset of the record before it, or 0 if unknown."""
        history, in_thread = self._hubs[hub].history, threading.current_thread() is self._thread
        if event_id is None:
            epoch, offset = history.epoch, 0 if in_thread else history.end
        else:
            epoch, offset = event_id.rsplit("-", 1)
        ephemeral = int(event_id is None)
        with self._lock:
            self._file.write(
                f"published {epoch} {hub} {offset} {ephemeral} {number} {time.monotonic()} {topic} {key}\n"
            )
