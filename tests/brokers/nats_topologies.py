"""A NATS cluster of three nodes with JetStream: start, kill, freeze and restart nodes, and find the leader."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

from aiohttp_interceptors.brokers.nats import NatsBroker
from tests.servers.nats import Nats
from tests.servers.process import free_port

NODES = 3
TIMEOUT = 30.0  # seconds for each step, on a busy machine
POLL_INTERVAL = 0.02  # seconds


class NatsCluster:
    """A cluster whose streams have three replicas. All methods are synchronous, for fixtures and programs."""

    def __init__(self, folder: Path, *, stream: str = "events", durable: bool = False) -> None:
        self.stream = stream
        routes = [free_port() for _ in range(NODES)]
        urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        self._monitors = [free_port() for _ in range(NODES)]
        self.nodes = [
            Nats(
                folder / f"n{number}",
                durable=durable,
                config=f"""
server_name: n{number}
http: 127.0.0.1:{self._monitors[number]}
cluster {{ name: tests, listen: 127.0.0.1:{routes[number]}, routes: [{urls}] }}
""",
            )
            for number in range(NODES)
        ]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def broker(self, connect=None, **options) -> NatsBroker:
        return NatsBroker(connect or self.urls, **{"stream": self.stream, "replicas": NODES, **options})

    def start(self) -> None:
        """Start all nodes, and wait until JetStream has a leader that knows them."""
        for node in self.nodes:
            node.start()
        self.ready()

    def ready(self) -> None:
        """Wait until all running nodes agree that JetStream has a leader."""
        self._wait_for(self._has_meta_leader, "JetStream has no leader")

    def leader(self, stream: str | None = None) -> Nats:
        """Wait until a stream has a leader, and return its node."""
        name = stream or self.stream
        self._wait_for(lambda: self._leader_number(name) is not None, f"stream {name} has no leader")
        number = self._leader_number(name)
        assert number is not None
        return self.nodes[number]

    def followers(self, stream: str | None = None) -> list[Nats]:
        """Return the nodes other than the leader of a stream."""
        leader = self.leader(stream)
        return [node for node in self.nodes if node is not leader]

    def replicated(self, stream: str | None = None) -> None:
        """Wait until a stream has a current replica on each node."""
        name = stream or self.stream
        self._wait_for(
            lambda: self._count_current(name) == NODES, f"stream {name} has fewer than {NODES} current replicas"
        )

    def kill(self, node: Nats | None = None) -> Nats:
        """Kill a node, by default the leader of the stream, and return it."""
        victim = node or self.leader()
        victim.kill()
        return victim

    def freeze(self, node: Nats | None = None) -> Nats:
        """Freeze a node, by default the leader of the stream, and return it."""
        victim = node or self.leader()
        victim.freeze()
        return victim

    def thaw(self, node: Nats) -> None:
        """Thaw a node."""
        node.thaw()

    def restart(self, node: Nats) -> None:
        """Start a node again with its store. A running node is shut down before."""
        node.stop()
        node.restart()

    def end(self) -> None:
        """Kill all nodes. Idempotent."""
        for node in self.nodes:
            node.kill()

    def _has_meta_leader(self) -> bool:
        for number in self._running():
            meta = self._monitor(number, "jsz").get("meta_cluster") or {}
            if not meta.get("leader") or meta.get("cluster_size") != NODES:
                return False
        return bool(self._running())

    def _leader_number(self, stream: str) -> int | None:
        """Return the number of the leader, if it and all other nodes that know the stream agree on it."""
        votes = {number: self._cluster(number, stream).get("leader") for number in self._running()}
        named = {name for name in votes.values() if name}
        return next((number for number in votes if named == {f"n{number}"} == {votes[number]}), None)

    def _count_current(self, stream: str) -> int:
        leader = self._leader_number(stream)
        if leader is None:
            return 0
        replicas = self._cluster(leader, stream).get("replicas") or []
        return 1 + sum(bool(replica.get("current")) and not replica.get("offline") for replica in replicas)

    def _cluster(self, number: int, stream: str) -> dict[str, object]:
        found = self._monitor(number, "jsz?streams=true&accounts=true")
        for account in found.get("account_details") or []:
            for detail in account.get("stream_detail") or []:
                if detail.get("name") == stream:
                    return detail.get("cluster") or {}
        return {}

    def _running(self) -> list[int]:
        return [number for number, node in enumerate(self.nodes) if node.running and not _is_frozen(node)]

    def _monitor(self, number: int, path: str) -> dict[str, object]:
        """Request something from the monitoring port of a node."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._monitors[number]}/{path}", timeout=2) as response:
                return json.load(response)
        except (OSError, ValueError):
            return {}

    def _wait_for(self, condition, problem: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{problem} after {TIMEOUT} s")
            time.sleep(POLL_INTERVAL)


def _is_frozen(node: Nats) -> bool:
    return Path(f"/proc/{node.pid}/stat").read_text().rpartition(") ")[2].split()[0] in {"T", "t"}
