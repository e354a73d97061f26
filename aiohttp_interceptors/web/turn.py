"""What is to be pumped in this turn of an event loop: what is put in one turn leaves in one write per stream."""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary

__all__ = ["Pumped", "Turn", "turn"]


class Pumped(Protocol):
    """An open stream, as the event loop's turn sees it."""

    def pump(self) -> None:
        """Write what was put."""


class Turn:
    """Pump each stream that has something to write, once, before the event loop waits again."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: list[Pumped] = []

    def add(self, stream: Pumped) -> None:
        """Have this stream pumped in this turn."""
        if not self._streams:
            asyncio.get_running_loop().call_soon(self._pump)
        self._streams.append(stream)

    def _pump(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.pump()


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


def turn() -> Turn:
    """Return that of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _of_loop.get(loop)
    if found is None:
        found = _of_loop[loop] = Turn()
    return found
