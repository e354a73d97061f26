"""The bytes that one stream sends, as a page shows them: bounded, lossy, and masked."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import NamedTuple

__all__ = ["MAX_SHOWN", "MAX_WAITING", "MAX_WAITING_BYTES", "RawView", "Write", "mask"]


MAX_WAITING = 64
"""Number of writes that wait for the page. Further ones are counted, and not shown."""
MAX_WAITING_BYTES = 32 * 1024
"""Number of bytes of these writes."""
MAX_SHOWN = 4096
"""Bytes of a write that are shown."""

_CHUNK_SIZE = re.compile(rb"([0-9a-f]{1,16})\r\n")
_LINE_END = re.compile(rb"(\r\n|\n|\r)")
_MASKED_FIELDS = frozenset({b"data", b"id", b""})  # an empty name is a comment
_PLAIN_FIELDS = {b"event": re.compile(rb"[^\r\n]*"), b"retry": re.compile(rb" ?[0-9]*")}


class Write(NamedTuple):
    """What was passed to the transport at once."""

    at: float
    """Unix time, in seconds."""
    size: int
    """Number of bytes."""
    data: bytes
    """The first ``MAX_SHOWN`` of them."""


class RawView:
    """Collects what a connection writes, until a page has room for it. A ``Viewer`` of a connection."""

    def __init__(self) -> None:
        self.changed: asyncio.Event = asyncio.Event()
        """Set when there is something to take."""
        self.has_ended: bool = False
        """Whether the stream has ended."""
        self.skipped: int = 0
        """Number of writes that are not shown since the last ``take``."""
        self._waiting: deque[Write] = deque()
        self._waiting_bytes = 0

    def written(self, data: bytes) -> None:
        """Keep a write, or count it if the page is too slow."""
        if self.skipped or len(self._waiting) == MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES:
            self.skipped += 1  # from the first one on, so that a page knows where they are missing
        else:
            write = Write(time.time(), len(data), data[:MAX_SHOWN])
            self._waiting.append(write)
            self._waiting_bytes += len(write.data)
        self.changed.set()

    def ended(self) -> None:
        """Note the end of the stream."""
        self.has_ended = True
        self.changed.set()

    def take(self) -> tuple[list[Write], int]:
        """Return the writes that wait, and the number of those that were skipped after them."""
        waiting, skipped = list(self._waiting), self.skipped
        self._waiting.clear()
        self._waiting_bytes = self.skipped = 0
        self.changed.clear()
        return waiting, skipped


def mask(write: Write) -> bytes:
    """Return the data of a write with an ``x`` for each byte of data, IDs and comments.

    What remains are chunk sizes, line ends, the names of fields and of events, and reconnection times. A line that is
    none of an event stream is masked as a whole.

    Args:
        write: What was written: frames, as one HTTP chunk or plain.
    """
    head, body = _split_chunk(write)
    lines = _LINE_END.split(body)
    lines[::2] = [_mask_line(line) for line in lines[::2]]
    return head + b"".join(lines)


def _split_chunk(write: Write) -> tuple[bytes, bytes]:
    """Return the size line of a chunk, and what follows. The size must be that of the write."""
    match = _CHUNK_SIZE.match(write.data)
    if match is not None and match.end() + int(match[1], 16) + 2 == write.size:
        return match[0], write.data[match.end() :]
    return b"", write.data


def _mask_line(line: bytes) -> bytes:
    name, colon, value = line.partition(b":")
    if colon and name in _MASKED_FIELDS:
        space = b" " if value.startswith(b" ") else b""
        return name + colon + space + b"x" * (len(value) - len(space))
    if colon and name in _PLAIN_FIELDS and _PLAIN_FIELDS[name].fullmatch(value):
        return line
    return b"x" * len(line)
