"""How a process is woken that waits for what another one stores in a file: a FIFO for each, in a folder beside it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["Bell", "ring"]


MOST = 4096  # bytes that are read at once: nobody counts how often it was rung


class Bell:
    """A FIFO that others write to. Raises ``OSError`` where the file system or the operating system has none.

    One that a killed process has left is taken away by whoever rings it: nobody reads it, which the kernel tells.
    """

    def __init__(self, folder: Path) -> None:
        if not hasattr(os, "mkfifo"):
            raise OSError("this operating system has no FIFO")
        folder.mkdir(exist_ok=True)
        self.path: Path = folder / token_hex(8)
        os.mkfifo(self.path)
        # Open for writing too, or its end would be read for ever once the first who rang it has closed it.
        self.file: int = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def hush(self) -> None:
        """Take what was written, so that only what comes now is told."""
        with suppress(BlockingIOError):
            os.read(self.file, MOST)

    def close(self) -> None:
        """Take it down, and the folder after the last one."""
        os.close(self.file)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()


def ring(folder: Path, own: Path | None) -> None:
    """Ring all bells of a folder but one's own. Waits for nobody, and raises nothing: who hears nothing polls."""
    with suppress(OSError):
        for bell in folder.iterdir():
            if bell != own:
                _ring(bell)


def _ring(bell: Path) -> None:
    try:
        file = os.open(bell, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # Nobody reads it, and if somebody was about to, that one comes to make another.
        with suppress(OSError):
            bell.unlink()
        return
    with suppress(OSError):  # full: it was rung
        os.write(file, b"!")
    os.close(file)
