"""Redis and Valkey with replicas: with Sentinels, and as a Cluster. Real processes on free ports.

All functions are synchronous, for fixtures of any scope and for programs. Each wait ends after ``TIMEOUT``.
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

TIMEOUT = 40.0  # seconds to wait for a change of a topology, on a busy machine
POLL_INTERVAL = 0.05  # seconds
SLOTS = 16384
T = TypeVar("T")


def ask(port: int, *command: object) -> object:
    """Execute a command on the server at a port. Raises ``redis.RedisError`` without a reply within two seconds."""
    with redis.Redis(port=port, socket_timeout=2.0, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        return client.execute_command(*command)


def info(port: int, section: str) -> dict[str, object]:
    """Return a section of ``INFO`` of the server at a port."""
    with redis.Redis(port=port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)) as client:
        return dict(client.info(section))


def wait_for(what: str, condition: Callable[[], T]) -> T:
    """Call a condition until its result is true, and return that. Errors of a server count as false."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            found = condition()
        except (redis.RedisError, OSError) as error:
            found, reason = None, f": {error!r}"
        else:
            reason = ""
        if found:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} took longer than {TIMEOUT} s{reason}")
        time.sleep(POLL_INTERVAL)


class SentinelNode(Valkey):
    """One Sentinel. It rewrites its configuration file."""

    def __init__(self, folder: Path, engine: str, configuration: str) -> None:
        super().__init__(folder, engine=engine)
        self.path = folder / "sentinel.conf"
        self.path.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{configuration}")

    def command(self) -> list[str]:
        return [self._binary, str(self.path), "--sentinel"]


class SentinelSite:
    """A primary with replicas, and Sentinels.

    ``servers[0]`` is the first primary. Every server has the command line options ``options``. ``down_after`` is
    ``down-after-milliseconds`` in seconds.
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
        """Addresses of the Sentinels."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def start(self) -> None:
        """Start all servers and Sentinels, and wait until they know each other. Stop them if that fails."""
        replicas, sentinels = self._counts
        try:
            for n in range(1 + replicas):
                follow = ("--replicaof", f"127.0.0.1 {self.servers[0].port}") if n else ()
                server = Valkey(self._folder / f"server{n}", *self._options, *follow, engine=self._engine)
                self.servers.append(server)
                server.start()
            wait_for("replication", lambda: self._online_replicas(self.servers[0]) == replicas)
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
            wait_for("the discovery of the Sentinels", self._has_discovered)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all processes. Idempotent."""
        for node in [*self.sentinels, *self.servers]:
            node.kill()

    def primary(self) -> Valkey:
        """Return the primary according to the majority of the Sentinels that reply."""
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
        """Return a replica."""
        primary = self.primary()
        return next(server for server in self.servers if server is not primary)

    def promote(self) -> Valkey:
        """Request a failover, wait for it, and return the new primary."""
        old = self.primary()
        wait_for("the start of the failover", lambda: ask(self.sentinels[0].port, "SENTINEL", "FAILOVER", self.name))
        return self.promoted(old)

    def promoted(self, old: Valkey) -> Valkey:
        """Wait until most Sentinels report another primary than ``old``, and return it."""

        def new() -> Valkey | None:
            found = self.primary()
            return found if found is not old and info(found.port, "replication")["role"] == "master" else None

        return wait_for("the promotion", new)

    def demoted(self, old: Valkey) -> None:
        """Wait until a former primary is a replica and synchronized."""

        def is_replica() -> bool:
            state = info(old.port, "replication")
            return state["role"] == "slave" and state["master_link_status"] == "up"

        wait_for("the demotion", is_replica)

    def replicated(self) -> None:
        """Wait until all replicas have what the primary has now."""
        primary = self.primary()
        offset = int(str(info(primary.port, "replication")["master_repl_offset"]))

        def is_replicated() -> bool:
            state = info(primary.port, "replication")
            found = [state[f"slave{n}"] for n in range(int(str(state["connected_slaves"])))]
            return bool(found) and all(one["state"] == "online" and int(one["offset"]) >= offset for one in found)

        wait_for("replication", is_replicated)

    def _online_replicas(self, server: Valkey) -> int:
        state = info(server.port, "replication")
        found = [state[f"slave{n}"] for n in range(int(str(state["connected_slaves"])))]
        return sum(one["state"] == "online" for one in found)

    def _has_discovered(self) -> bool:
        for sentinel in self.sentinels:
            flat = ask(sentinel.port, "SENTINEL", "MASTER", self.name)
            state = dict(zip(flat[::2], flat[1::2], strict=True))
            others, slaves = int(state[b"num-other-sentinels"]), int(state[b"num-slaves"])
            if others != len(self.sentinels) - 1 or slaves != len(self.servers) - 1:
                return False
        return True


class ClusterSite:
    """A Cluster: ``primaries`` nodes with an equal share of the slots, and ``replicas`` for each of them.

    ``servers`` begins with the first primaries. ``node_timeout`` is ``cluster-node-timeout`` in seconds.
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
        """Addresses of the nodes."""
        return [("127.0.0.1", server.port) for server in self.servers]

    def start(self) -> None:
        """Start all nodes, and wait until each is ready. Stop them if that fails."""
        try:
            self._create()
        except BaseException:
            self.stop()
            raise

    def _create(self) -> None:
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
        wait_for("the discovery of the nodes", self._has_discovered)
        for n, server in enumerate(self.servers[self._primaries :]):
            primary = self._node_id(self.servers[n % self._primaries])
            wait_for(
                "replication",
                lambda server=server, primary=primary: ask(server.port, "CLUSTER", "REPLICATE", primary),
            )
        for server in self.servers[self._primaries :]:
            wait_for("replication", lambda server=server: self._is_synchronized(server))
        wait_for("the Cluster", lambda: all(self._is_ready(server) for server in self.servers))

    def stop(self) -> None:
        """Kill all processes. Idempotent."""
        for server in self.servers:
            server.kill()

    def owner(self, key: str) -> Valkey:
        """Return the primary that has the slot of a key."""
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
        raise RuntimeError(f"no node knows which one has the slot {slot} of {key!r}")

    def promote(self, key: str) -> Valkey:
        """Request a failover of the node with a key, wait for it, and return the new one."""
        old = self.owner(key)
        replica = next(server for server in self.servers if self._primary_port_of(server) == old.port)
        ask(replica.port, "CLUSTER", "FAILOVER")
        return self.promoted(key, old)

    def promoted(self, key: str, old: Valkey) -> Valkey:
        """Wait until another node than ``old`` has the slot of a key and is ready, and return it."""

        def new() -> Valkey | None:
            try:
                found = self.owner(key)
            except (RuntimeError, StopIteration):
                return None
            return found if found is not old and self._is_ready(found) else None

        return wait_for("the promotion", new)

    def move(self, key: str, to: Valkey) -> None:
        """Move the slot of a key, with all its keys, to another primary."""
        old = self.owner(key)
        slot = int(ask(old.port, "CLUSTER", "KEYSLOT", key))
        ask(to.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._node_id(old))
        ask(old.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._node_id(to))
        while keys := ask(old.port, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(old.port, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for server in (to, old, *[one for one in self.servers[: self._primaries] if one not in (to, old)]):
            ask(server.port, "CLUSTER", "SETSLOT", slot, "NODE", self._node_id(to))

    def _node_id(self, server: Valkey) -> str:
        return ask(server.port, "CLUSTER", "MYID").decode()

    def _has_discovered(self) -> bool:
        nodes = [ask(server.port, "CLUSTER", "NODES") for server in self.servers]
        return all(
            len(lines) == len(self.servers) and not any(b"handshake" in line or b"noaddr" in line for line in lines)
            for lines in (found.splitlines() for found in nodes)
        )

    def _is_ready(self, server: Valkey) -> bool:
        return b"cluster_state:ok" in ask(server.port, "CLUSTER", "INFO")

    def _is_synchronized(self, server: Valkey) -> bool:
        return info(server.port, "replication").get("master_link_status") == "up"

    def _primary_port_of(self, server: Valkey) -> int | None:
        port = info(server.port, "replication").get("master_port")
        return None if port is None else int(str(port))
