"""The engines of the fail-over test, configured as in production, and their faults."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from tests.brokers.nats_topologies import NatsCluster
from tests.brokers.postgres_topologies import StandbySite
from tests.brokers.redis_topologies import ClusterSite, SentinelNode, SentinelSite, ask, info, wait_for
from tests.servers.process import ServerProcess
from tests.servers.valkey import DURABLE, Valkey

R = TypeVar("R")


class Process(Protocol):
    """An application process."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


async def in_thread(function: Callable[..., R], *arguments: object) -> R:
    """Call a blocking function in a thread. If cancelled, wait for its end first."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        with suppress(Exception):
            await call
        raise


class Site(ABC):
    """An engine and its servers, with a method for each of its ``faults``."""

    engine: str
    configuration: str
    """A short description for the documentation."""
    faults: tuple[str, ...] = ("kill", "freeze", "rolling", "quick", "apps")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[ServerProcess] = []
        self.rng = random.Random(0)

    @property
    @abstractmethod
    def broker(self) -> dict[str, object]:
        """The arguments of ``failover_server.broker_of``."""

    async def start(self) -> None:
        """Start the servers one after the other, and wait until they respond."""
        for server in self.servers:
            await in_thread(server.start)

    async def stop(self) -> None:
        """Kill all servers."""
        for server in self.servers:
            await in_thread(server.kill)

    async def primary(self) -> ServerProcess:
        """Return the current primary."""
        return self.servers[0]

    async def inflict(self, fault: str, processes: Sequence[Process], seconds: float) -> None:
        """Run a fault of the engine, or of the processes that use it. A server is dead or frozen for ``seconds``."""
        await getattr(self, fault)(processes, seconds)

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
        """Restart one server after the other with SIGTERM."""
        for server in self.servers:
            await in_thread(server.stop)
            await in_thread(server.start)
            await self.wait_replicating()

    async def lose(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary without a restart, and wait until another server is promoted."""
        victim = await self.primary()
        await in_thread(victim.kill)
        await self.wait_promoted(victim)

    async def quick(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary, and start it again immediately."""
        victim = await self.primary()
        await in_thread(victim.kill)
        await in_thread(victim.start)

    async def apps(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart all application processes: the first one with SIGKILL, the others with SIGTERM."""
        await asyncio.gather(processes[0].kill(), *(process.stop() for process in processes[1:]))
        await asyncio.gather(*(process.start() for process in processes))

    async def wait_promoted(self, old: ServerProcess) -> None:  # noqa: B027  # some engines have only one server
        """Wait until a server other than ``old`` is the primary."""

    async def wait_replicating(self) -> None:  # noqa: B027  # some engines have nothing to wait for
        """Wait until all servers that were restarted replicate again."""


class SqliteFile(Site):
    """A file that the application processes share. Without a server, the faults are those of an application process."""

    engine = "SQLite"
    configuration = "a file on a local disk, `SqliteBroker(path)`, several processes"
    faults = ("kill", "freeze", "rolling", "apps")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "sqlite", "path": str(self.folder / "events.sqlite3")}

    async def kill(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill a process while it writes, and start it again later."""
        await processes[0].kill()
        await asyncio.sleep(seconds)
        await processes[0].start()

    async def freeze(self, processes: Sequence[Process], seconds: float) -> None:
        """Freeze a process, which may hold the write lock, and thaw it later."""
        processes[0].freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            processes[0].thaw()

    async def rolling(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart one process after the other with SIGTERM."""
        for process in processes:
            await process.stop()
            await process.start()


class PostgresStandby(Site):
    """A primary and a synchronous standby, which is promoted by an operator who fences the old primary."""

    engine = "PostgreSQL"
    configuration = (
        "a primary and a streaming standby, `synchronous_standby_names = '*'`, "
        "`postgresql://user@one:5432,two:5432/db?target_session_attrs=read-write`"
    )
    faults = ("kill", "freeze", "fence", "rolling", "quick", "apps")
    synchronous = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._site = StandbySite(folder, synchronous=self.synchronous, wal_retrieve_retry_interval="1s")

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "postgres", "dsn": self._site.dsn, "table": self._site.table}

    async def start(self) -> None:
        await in_thread(self._site.start)
        self.servers = list(self._site.servers)

    async def stop(self) -> None:
        await in_thread(self._site.end)

    async def primary(self) -> ServerProcess:
        return self._site.primary

    async def kill(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary, promote the standby, and join the old primary as its standby later."""
        await in_thread(self._site.kill)
        await asyncio.sleep(seconds / 4)
        await in_thread(self._site.promote)
        await asyncio.sleep(seconds * 3 / 4)
        await in_thread(self._site.join)

    async def fence(self, processes: Sequence[Process], seconds: float) -> None:
        """Freeze the primary, promote the standby, and end the old primary before it is thawed."""
        self._site.freeze()
        await asyncio.sleep(seconds / 4)
        await in_thread(self._site.promote)
        await asyncio.sleep(seconds * 3 / 4)
        await in_thread(self._site.join)

    async def wait_promoted(self, old: ServerProcess) -> None:
        await in_thread(self._site.promote)

    async def wait_replicating(self) -> None:
        await in_thread(self._site.follows)


class PostgresAsynchronous(PostgresStandby):
    """The same with asynchronous replication: a fail-over loses events, which clients learn from a gap."""

    engine = "PostgreSQL-async"
    configuration = "the same without `synchronous_standby_names`"
    faults = ("kill", "fence")
    synchronous = False


class ValkeySentinel(Site):
    """A primary with two replicas, and three Sentinels. The first Sentinel fails together with the primary."""

    engine = "Sentinel"
    configuration = (
        "Valkey with two replicas and three Sentinels, `appendonly yes`, `appendfsync always`, "
        "`min-replicas-to-write 1`, `min-replicas-max-lag 3`"
    )
    options: tuple[str, ...] = (*DURABLE, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "3")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._site = SentinelSite(folder, *self.options, replicas=2)

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "sentinel", "sentinels": self._site.addresses, "service": self._site.name}

    async def start(self) -> None:
        await in_thread(self._site.start)
        self.servers = list(self._site.servers)

    async def stop(self) -> None:
        await in_thread(self._site.stop)

    async def primary(self) -> ServerProcess:
        return await in_thread(self._site.primary)

    async def kill(self, processes: Sequence[Process], seconds: float) -> None:
        """Kill the primary, and start it again, still as a primary, after another one was promoted."""
        await super().kill(processes, seconds)
        await self.wait_replicating()

    async def freeze(self, processes: Sequence[Process], seconds: float) -> None:
        """Freeze the primary until another one was promoted."""
        await super().freeze(processes, seconds)
        await self.wait_replicating()

    async def quick(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart the primary and its Sentinel at about the time when the other Sentinels elect a new primary.

        It restarts as a primary, and its Sentinel considers it the primary, until they learn of the election.
        """
        old = await in_thread(self._site.primary)
        sentinel = self._site.sentinels[self._site.servers.index(old)]
        await in_thread(old.kill)
        await in_thread(sentinel.kill)
        await in_thread(wait_for, "an election", partial(self._election_started, old, sentinel))
        await asyncio.sleep(self.rng.uniform(0, 0.8))
        await in_thread(old.start)
        await in_thread(sentinel.start)
        await asyncio.sleep(2)  # an election that has started is over
        await self.wait_replicating()

    async def rolling(self, processes: Sequence[Process], seconds: float) -> None:
        """Restart the replicas, then the primary after a planned promotion of another one, then the Sentinels."""
        old = self._site.servers[0]
        for server in self._site.servers[1:]:
            await in_thread(server.stop)
            await in_thread(server.start)
            await self.wait_replicating()
        set_primary(old, await in_thread(self._site.promote))
        await self.wait_replicating()
        await in_thread(old.stop)
        await in_thread(old.start)
        await self.wait_replicating()
        for sentinel in self._site.sentinels:
            await in_thread(sentinel.stop)
            await in_thread(sentinel.start)

    async def wait_promoted(self, old: ServerProcess) -> None:
        await in_thread(self._site.promoted, old)

    async def wait_replicating(self) -> None:
        await in_thread(wait_for, "one primary, which all others follow", self._replicates)

    def _election_started(self, old: ServerProcess, dead: SentinelNode) -> bool:
        """Whether a running Sentinel considers the primary down, or already knows another one."""
        other = next(sentinel for sentinel in self._site.sentinels if sentinel is not dead)
        flat = ask(other.port, "SENTINEL", "MASTER", self._site.name)
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        return b"_down" in state[b"flags"] or int(state[b"port"]) != old.port

    def _replicates(self) -> bool:
        states = {server: info(server.port, "replication") for server in self._site.servers}
        primaries = [server for server, state in states.items() if state["role"] == "master"]
        links = [state["master_link_status"] for state in states.values() if state["role"] == "slave"]
        return primaries == [self._site.primary()] and set(links) == {"up"}


def set_primary(server: Valkey, primary: Valkey | None) -> None:
    """Change the role that a server restarts with. A server with a configuration file writes its role to that file."""
    options = list(server._options)
    if "--replicaof" in options:
        index = options.index("--replicaof")
        del options[index : index + 2]
    server._options = (*options, *(("--replicaof", f"127.0.0.1 {primary.port}") if primary else ()))


class BareSentinel(ValkeySentinel):
    """The same without a replica that must acknowledge: a fail-over loses events, which clients learn from a gap."""

    engine = "Sentinel-bare"
    configuration = "the same without `min-replicas-to-write`"
    options = DURABLE


class ValkeyCluster(Site):
    """Three primaries with a replica each. The faults are those of the primary that owns the slot of the stream."""

    engine = "Cluster"
    configuration = "a Valkey Cluster of three primaries and three replicas, `appendonly yes`, `appendfsync always`"
    key = "{events}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._site = ClusterSite(folder, *DURABLE, replicas=1)

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "cluster", "nodes": self._site.addresses, "stream": "events"}

    async def start(self) -> None:
        await in_thread(self._site.start)
        self.servers = list(self._site.servers)

    async def stop(self) -> None:
        await in_thread(self._site.stop)

    async def primary(self) -> ServerProcess:
        return await in_thread(self._site.owner, self.key)

    async def wait_promoted(self, old: ServerProcess) -> None:
        await in_thread(self._site.promoted, self.key, old)


class NatsThree(Site):
    """Three nodes of NATS, and a stream with a replica on each."""

    engine = "NATS"
    configuration = "three nodes, `NatsBroker([url, url, url], replicas=3)`"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cluster = NatsCluster(folder)
        self.servers = list(self._cluster.nodes)

    @property
    def broker(self) -> dict[str, object]:
        return {"kind": "nats", "urls": self._cluster.urls, "stream": self._cluster.stream, "replicas": 3}

    async def start(self) -> None:
        await in_thread(self._cluster.start)

    async def primary(self) -> ServerProcess:
        return await in_thread(self._cluster.leader)

    async def wait_promoted(self, old: ServerProcess) -> None:
        await in_thread(self._cluster.leader)

    async def wait_replicating(self) -> None:
        await in_thread(self._cluster.ready)
        await in_thread(self._cluster.replicated)
