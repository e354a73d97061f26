"""Waking the tails of other processes when something was appended to the file.

Each process that reads has a FIFO in a directory beside the database file. Every process that appends writes to the
FIFOs of the others. Without FIFOs the tails poll.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["Fifo", "Notifier", "notify_others"]


MAX_READ = 4096  # bytes at once; how many there are means nothing


class Fifo:
    """A FIFO that other processes write to.

    Args:
        directory: The directory of all FIFOs for a database file. It is created if it is missing.

    Raises:
        OSError: The file system or the operating system has no FIFOs.
    """

    def __init__(self, directory: Path) -> None:
        if not hasattr(os, "mkfifo"):
            raise OSError("this operating system has no FIFO")
        directory.mkdir(exist_ok=True)
        self.path: Path = directory / token_hex(8)
        os.mkfifo(self.path)
        # Open for writing too: otherwise it would be at end of file once the first writer has closed it.
        self.fd: int = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def drain(self) -> None:
        """Read what was written, so that the FIFO is readable only after the next notification."""
        with suppress(BlockingIOError):
            os.read(self.fd, MAX_READ)

    def close(self) -> None:
        """Close and delete the FIFO, and the directory if it is the last one."""
        os.close(self.fd)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()


class Notifier:
    """Wakes the tail of this process. Used in the event loop.

    Args:
        directory: The directory of all FIFOs for a database file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory: Path = directory
        self._fifo: Fifo | None = None
        self._notified = asyncio.Event()

    @property
    def path(self) -> Path | None:
        """The FIFO of this process, or ``None`` if other processes cannot notify it."""
        return None if self._fifo is None else self._fifo.path

    def start(self) -> None:
        """Create a FIFO and watch it, in place of the one before. Without FIFOs, ``path`` is ``None`` afterwards."""
        self.stop()
        with suppress(OSError, NotImplementedError):  # not every event loop can watch a file
            self._fifo = fifo = Fifo(self.directory)
            asyncio.get_running_loop().add_reader(fifo.fd, self._on_readable, fifo)
            self.notify()  # for records that were appended before
            return
        self.stop()

    def stop(self) -> None:
        """Delete the FIFO. Idempotent."""
        fifo, self._fifo = self._fifo, None
        if fifo is not None:
            asyncio.get_running_loop().remove_reader(fifo.fd)
            fifo.close()

    def notify(self) -> None:
        """Wake the tail of this process."""
        self._notified.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a notification, at most that many seconds. Return whether there was one."""
        try:
            async with asyncio.timeout(seconds):
                await self._notified.wait()
        except TimeoutError:
            return False
        return True

    def clear(self) -> None:
        """Forget the notifications so far, before what they are about is read."""
        self._notified.clear()

    def _on_readable(self, fifo: Fifo) -> None:
        fifo.drain()
        self.notify()


def notify_others(directory: Path, own: Path | None) -> None:
    """Write to all FIFOs of a directory except one. Does not block, and ignores errors, because tails poll too."""
    with suppress(OSError):
        for path in directory.iterdir():
            if path != own:
                _write(path)


def _write(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # No process reads it: its owner was killed, or is about to open it and will create another one.
        with suppress(OSError):
            path.unlink()
        return
    with suppress(OSError):  # full: it is readable already
        os.write(fd, b"!")
    os.close(fd)
