"""Redis and Valkey with replicas: behind Sentinels, and as a Cluster. Real processes on free ports, surely ended.

All is synchronous, so that fixtures of any scope, and programs, can have it. Each wait has a limit, ``PATIENCE``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.process import free_port
from tests.servers.valkey import Valkey

__all__ = ["ClusterSite", "SentinelNode", "SentinelSite"]

PATIENCE = 40.0  # seconds that a topology has to become what a test waits for, on a busy machine
LOOK = 0.05  # seconds between two looks
SLOTS = 16384
T = TypeVar("T")


def ask(port: int, *command: object) -> object:
    """Send one command to the server at a port. Raises ``redis.RedisError``, within two seconds."""
    with redis.Redis(port=port, socket_timeout=2.0, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        return client.execute_command(*command)


def info(port: int, section: str) -> dict[str, object]:
    """Return a section of what the server at a port says of itself."""
    with redis.Redis(port=port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)) as client:
        return dict(client.info(section))


def wait_for(what: str, condition: Callable[[], T]) -> T:
    """Ask until it holds, and return what it is then. A server that does not answer is asked again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = condition()
        except (redis.RedisError, OSError) as error:
            found, last = None, f": {error!r}"
        else:
            last = ""
        if found:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} took longer than {PATIENCE} s{last}")
        time.sleep(LOOK)


class SentinelNode(Valkey):
    """One Sentinel, with a configuration file that it writes to."""

    def __init__(self, folder: Path, engine: str, configuration: str) -> None:
        super().__init__(folder, engine=engine)
        self.path = folder / "sentinel.conf"
        self.path.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{configuration}")

    def command(self) -> list[str]:
        return [self._binary, str(self.path), "--sentinel"]


class SentinelSite:
    """A primary with replicas, and Sentinels that promote one of these.

    ``servers[0]`` is the primary at first. ``options`` are those of every server's command line. A server that says
    nothing for ``down_after`` seconds is taken for dead by the Sentinels.
    """

    name = "main"

    def __init__(
        self, folder: Path, *options: str, engine: str = "valkey", replicas: int = 1, sentinels: int = 3,
        down_after: float = 1.0,
    ) -> None:  # fmt: skip
        self._folder = folder
        self.servers: list[Valkey] = []
        self.sentinels: list[SentinelNode] = []
        self._options = ("--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb", *options)
        self._engine = engine
        self._counts = replicas, sentinels
        self._down_after = down_after

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the Sentinels are."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def start(self) -> None:
        """Start all of it, and wait until each part knows the others. Whatever is started is ended if that fails."""
        replicas, sentinels = self._counts
        try:
            for n in range(1 + replicas):
                follow = ("--replicaof", f"127.0.0.1 {self.servers[0].port}") if n else ()
                server = Valkey(self._folder / f"server{n}", *self._options, *follow, engine=self._engine)
                self.servers.append(server)
                server.start()
            wait_for("replicating", lambda: self._online(self.servers[0]) == replicas)
            configuration = "\n".join([
                f"sentinel monitor {self.name} 127.0.0.1 {self.servers[0].port} {sentinels // 2 + 1}",
                f"sentinel down-after-milliseconds {self.name} {int(self._down_after * 1000)}",
                f"sentinel failover-timeout {self.name} 3000",
                f"sentinel parallel-syncs {self.name} 1",
                "",
            ])  # fmt: skip
            for n in range(sentinels):
                node = SentinelNode(self._folder / f"sentinel{n}", self._engine, configuration)
                self.sentinels.append(node)
                node.start()
            wait_for("the meeting of the Sentinels", self._met)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all of it at once. Idempotent."""
        for node in [*self.sentinels, *self.servers]:
            node.kill()

    def primary(self) -> Valkey:
        """Return the server that most of the Sentinels that answer take for the primary."""
        votes: dict[int, int] = {}
        for sentinel in self.sentinels:
            try:
                address = ask(sentinel.port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
            except (redis.RedisError, OSError):
                continue
            votes[int(address[1])] = votes.get(int(address[1]), 0) + 1
        port = max(votes, key=lambda port: votes[port])
        return next(server for server in self.servers if server.port == port)

    def replica(self) -> Valkey:
        """Return a server that is no primary."""
        primary = self.primary()
        return next(server for server in self.servers if server is not primary)

    def promote(self) -> Valkey:
        """Have the Sentinels change the primary in order; wait for it, and return the new one."""
        old = self.primary()
        wait_for("the failover's beginning", lambda: ask(self.sentinels[0].port, "SENTINEL", "FAILOVER", self.name))
        return self.promoted(old)

    def promoted(self, old: Valkey) -> Valkey:
        """Wait until most Sentinels name another primary than ``old``, and it is one; return it."""

        def new() -> Valkey | None:
            found = self.primary()
            return found if found is not old and info(found.port, "replication")["role"] == "master" else None

        return wait_for("the promotion", new)

    def demoted(self, old: Valkey) -> None:
        """Wait until a former primary has become a replica that has what the new one has."""

        def follows() -> bool:
            now = info(old.port, "replication")
            return now["role"] == "slave" and now["master_link_status"] == "up"

        wait_for("the demotion", follows)

    def replicated(self) -> None:
        """Wait until each replica that is online has all that the primary has now."""
        primary = self.primary()
        least = int(str(info(primary.port, "replication")["master_repl_offset"]))

        def even() -> bool:
            state = info(primary.port, "replication")
            found = [state[f"slave{n}"] for n in range(int(str(state["connected_slaves"])))]
            return bool(found) and all(one["state"] == "online" and int(one["offset"]) >= least for one in found)

        wait_for("replicating", even)

    def _online(self, server: Valkey) -> int:
        state = info(server.port, "replication")
        found = [state[f"slave{n}"] for n in range(int(str(state["connected_slaves"])))]
        return sum(one["state"] == "online" for one in found)

    def _met(self) -> bool:
        for sentinel in self.sentinels:
            flat = ask(sentinel.port, "SENTINEL", "MASTER", self.name)
            state = dict(zip(flat[::2], flat[1::2], strict=True))
            others, slaves = int(state[b"num-other-sentinels"]), int(state[b"num-slaves"])
            if others != len(self.sentinels) - 1 or slaves != len(self.servers) - 1:
                return False
        return True


class ClusterSite:
    """A Cluster: primaries with equal parts of the slots, each with so many replicas.

    ``servers`` has the primaries first, as they are at first. A node that says nothing for ``node_timeout`` seconds
    is taken for dead by the others.
    """

    def __init__(
        self, folder: Path, *options: str, engine: str = "valkey", primaries: int = 3, replicas: int = 0,
        node_timeout: float = 1.0,
    ) -> None:  # fmt: skip
        self._folder = folder
        self.servers: list[Valkey] = []
        self._options = options
        self._engine = engine
        self._primaries, self._replicas = primaries, replicas
        self._node_timeout = node_timeout

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the nodes are."""
        return [("127.0.0.1", server.port) for server in self.servers]

    def start(self) -> None:
        """Start all of it, and wait until each node serves. Whatever is started is ended if that fails."""
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise

    def _begin(self) -> None:
        buses = []
        for n in range(self._primaries * (1 + self._replicas)):
            buses.append(free_port())
            server = Valkey(
                self._folder / f"node{n}", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
                "--cluster-port", str(buses[-1]), "--cluster-node-timeout", str(int(self._node_timeout * 1000)),
                "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
                *self._options, engine=self._engine,
            )  # fmt: skip
            self.servers.append(server)
            server.start()
        first = self.servers[0]
        for number, server in enumerate(self.servers):
            ask(server.port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if server is not first:
                ask(server.port, "CLUSTER", "MEET", "127.0.0.1", first.port, buses[0])
        for n, server in enumerate(self.servers[: self._primaries]):
            begin, end = SLOTS * n // self._primaries, SLOTS * (n + 1) // self._primaries - 1
            ask(server.port, "CLUSTER", "ADDSLOTSRANGE", begin, end)
        wait_for("the meeting of the nodes", self._met)
        for n, server in enumerate(self.servers[self._primaries :]):
            of = self._identity(self.servers[n % self._primaries])
            wait_for("replicating", lambda server=server, of=of: ask(server.port, "CLUSTER", "REPLICATE", of))
        for server in self.servers[self._primaries :]:
            wait_for("replicating", lambda server=server: self._follows(server))
        wait_for("the Cluster", lambda: all(self._serves(server) for server in self.servers))

    def stop(self) -> None:
        """End all of it at once. Idempotent."""
        for server in self.servers:
            server.kill()

    def owner(self, key: str) -> Valkey:
        """Return the primary that has the slot of a key, as a node that answers says."""
        slot: int | None = None
        for server in self.servers:
            if not server.running:
                continue
            try:
                slot = int(ask(server.port, "CLUSTER", "KEYSLOT", key))
                for begin, end, primary, *_ in ask(server.port, "CLUSTER", "SLOTS"):
                    if begin <= slot <= end:
                        return next(one for one in self.servers if one.port == primary[1])
            except (redis.RedisError, OSError):
                continue
        raise RuntimeError(f"no node knows who has the slot {slot} of {key!r}")

    def promote(self, key: str) -> Valkey:
        """Have a replica take over a key's slots in order; wait for it, and return it."""
        old = self.owner(key)
        replica = next(server for server in self.servers if self._master_of(server) == old.port)
        ask(replica.port, "CLUSTER", "FAILOVER")
        return self.promoted(key, old)

    def promoted(self, key: str, old: Valkey) -> Valkey:
        """Wait until another node than ``old`` has a key's slot and is a primary; return it."""

        def new() -> Valkey | None:
            try:
                found = self.owner(key)
            except (RuntimeError, StopIteration):
                return None
            return found if found is not old and self._serves(found) else None

        return wait_for("the promotion", new)

    def move(self, key: str, to: Valkey) -> None:
        """Move the slot of a key, with all keys in it, to another primary."""
        old = self.owner(key)
        slot = int(ask(old.port, "CLUSTER", "KEYSLOT", key))
        ask(to.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._identity(old))
        ask(old.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._identity(to))
        while keys := ask(old.port, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(old.port, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for server in (to, old, *[one for one in self.servers[: self._primaries] if one not in (to, old)]):
            ask(server.port, "CLUSTER", "SETSLOT", slot, "NODE", self._identity(to))

    def _identity(self, server: Valkey) -> str:
        return ask(server.port, "CLUSTER", "MYID").decode()

    def _met(self) -> bool:
        nodes = [ask(server.port, "CLUSTER", "NODES") for server in self.servers]
        return all(
            len(lines) == len(self.servers) and not any(b"handshake" in line or b"noaddr" in line for line in lines)
            for lines in (found.splitlines() for found in nodes)
        )

    def _serves(self, server: Valkey) -> bool:
        return b"cluster_state:ok" in ask(server.port, "CLUSTER", "INFO")

    def _follows(self, server: Valkey) -> bool:
        return info(server.port, "replication").get("master_link_status") == "up"

    def _master_of(self, server: Valkey) -> int | None:
        port = info(server.port, "replication").get("master_port")
        return None if port is None else int(str(port))
