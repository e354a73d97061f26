"""What is to be pumped in this turn of an event loop: what is put in one turn leaves in one write per stream."""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary

from ..errors import FATAL

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
        left = iter(streams)
        try:
            for stream in left:
                try:
                    stream.pump()
                except FATAL:
                    raise
                except BaseException as error:  # noqa: BLE001  # of one stream, and no reason not to pump the others
                    context = {"message": f"{stream!r} raised when it was pumped", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
        finally:  # the process is ending; those behind still have their turn if the event loop goes on
            for stream in left:
                self.add(stream)


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


def turn() -> Turn:
    """Return that of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _of_loop.get(loop)
    if found is None:
        found = _of_loop[loop] = Turn()
    return found
