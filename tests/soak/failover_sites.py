"""The engines of the fail-over rig, as they are run in production, and what happens to them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from tests.servers.process import ServerProcess

R = TypeVar("R")


class Process(Protocol):
    """An application process."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


Fault = Callable[[Sequence[Process], float], Awaitable[None]]
"""What happens to an engine and to the processes that use it. A server is away for so many seconds."""


async def in_thread(function: Callable[..., R], *arguments: object) -> R:
    """Call a function that blocks for a bounded time. A cancellation waits for its end, so that it leaves nothing."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(Exception):
            await running
        raise


async def restart_all(processes: Sequence[Process], seconds: float) -> None:
    """Restart all application processes at once: the first one is killed, and the others are told to stop."""
    await asyncio.gather(processes[0].kill(), *(process.stop() for process in processes[1:]))
    await asyncio.gather(*(process.start() for process in processes))


class Site(ABC):
    """An engine in a folder of its own, and its faults by name."""

    engine: str
    configuration: str
    """What is run, in a few words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[ServerProcess] = []
        self.faults: dict[str, Fault] = {"apps": restart_all}

    @property
    @abstractmethod
    def broker(self) -> dict[str, object]:
        """What an application process makes its broker of."""

    async def start(self) -> None:
        """Start the servers, one after the other, and wait until they answer."""
        for server in self.servers:
            await in_thread(server.start)

    async def stop(self) -> None:
        """Kill all servers."""
        for server in self.servers:
            await in_thread(server.kill)

    async def primary(self) -> ServerProcess:
        """Return the server that is written to now."""
        return self.servers[0]

    async def kill(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary, and start it again later."""
        victim = await self.primary()
        await in_thread(victim.kill)
        await asyncio.sleep(seconds)
        await in_thread(victim.start)

    async def freeze(self, processes: Sequence[Process], seconds: float) -> None:
        """Freeze the primary, and thaw it later."""
        victim = await self.primary()
        victim.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            victim.thaw()

    async def rolling(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart one server after the other, each in order."""
        for server in self.servers:
            await in_thread(server.stop)
            await in_thread(server.start)
            await self.settled()

    async def quick(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary, and start it again at once."""
        victim = await self.primary()
        await in_thread(victim.kill)
        await in_thread(victim.start)

    async def settled(self) -> None:  # noqa: B027  # of most, one that answers is one
        """Wait until a server that was restarted is a full member again."""


class SqliteFile(Site):
    """A file that the application processes share. It has no server: the faults are those of a process that writes."""

    engine = "SQLite"
    configuration = "a file on a local disk, `SqliteBroker(path)`, several processes"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.faults |= {"kill": self.kill, "freeze": self.freeze, "rolling": self.rolling}

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "sqlite", "path": str(self.folder / "events.sqlite3")}

    async def kill(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill a process amid what it writes, and start it again later."""
        await processes[0].kill()
        await asyncio.sleep(seconds)
        await processes[0].start()

    async def freeze(self, processes: Sequence[Process], seconds: float) -> None:
        """Freeze a process, which may have the lock of who writes, and thaw it later."""
        processes[0].freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            processes[0].thaw()

    async def rolling(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart one process after the other, as a deployment does."""
        for process in processes:
            await process.stop()
            await process.start()
