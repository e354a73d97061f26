"""Three nodes of NATS with JetStream: killed, frozen, and started again, and which of them leads. All within limits."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

from aiohttp_interceptors.brokers.nats import NatsBroker
from tests.servers.nats import Nats
from tests.servers.process import free_port

NODES = 3
PATIENCE = 30.0  # seconds for each step, on a machine that has others
LOOK = 0.02  # seconds between two looks


class NatsCluster:
    """A cluster whose streams have three replicas. All is synchronous, so that programs of any sort can have it."""

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
        """Start all, and wait until JetStream has a leader that knows them."""
        for node in self.nodes:
            node.start()
        self.ready()

    def ready(self) -> None:
        """Wait until JetStream itself has a leader, and all nodes that run are current."""
        self._wait(lambda: self._meta_leads(), "JetStream has no leader")

    def leader(self, stream: str | None = None) -> Nats:
        """Wait until a stream has a leader, and return that node."""
        name = stream or self.stream
        self._wait(lambda: self._leader(name) is not None, f"stream {name} has no leader")
        found = self._leader(name)
        assert found is not None
        return self.nodes[found]

    def followers(self, stream: str | None = None) -> list[Nats]:
        """Return the nodes that do not lead a stream."""
        leader = self.leader(stream)
        return [node for node in self.nodes if node is not leader]

    def replicated(self, stream: str | None = None) -> None:
        """Wait until a stream has a replica on each node, and all have what its leader has."""
        name = stream or self.stream
        self._wait(lambda: self._current(name) == NODES, f"stream {name} has no {NODES} replicas that are current")

    def kill(self, node: Nats | None = None) -> Nats:
        """Kill the stream's leader, or another node, and return it."""
        victim = node or self.leader()
        victim.kill()
        return victim

    def freeze(self, node: Nats | None = None) -> Nats:
        """Have the stream's leader hold still, or another node, and return it."""
        victim = node or self.leader()
        victim.freeze()
        return victim

    def thaw(self, node: Nats) -> None:
        """Have a node go on."""
        node.thaw()

    def restart(self, node: Nats) -> None:
        """Start a node again, with what it has; one that runs is stopped in order before."""
        node.stop()
        node.restart()

    def end(self) -> None:
        """Kill all. Idempotent."""
        for node in self.nodes:
            node.kill()

    def _meta_leads(self) -> bool:
        for number in self._running():
            meta = self._ask(number, "jsz").get("meta_cluster") or {}
            if not meta.get("leader") or meta.get("cluster_size") != NODES:
                return False
        return bool(self._running())

    def _leader(self, stream: str) -> int | None:
        """Return the number of the node that all take for the leader which know the stream, itself among them."""
        votes = {number: self._cluster(number, stream).get("leader") for number in self._running()}
        named = {name for name in votes.values() if name}
        return next((number for number in votes if named == {f"n{number}"} == {votes[number]}), None)

    def _current(self, stream: str) -> int:
        leader = self._leader(stream)
        if leader is None:
            return 0
        replicas = self._cluster(leader, stream).get("replicas") or []
        return 1 + sum(bool(replica.get("current")) and not replica.get("offline") for replica in replicas)

    def _cluster(self, number: int, stream: str) -> dict[str, object]:
        found = self._ask(number, "jsz?streams=true&accounts=true")
        for account in found.get("account_details") or []:
            for detail in account.get("stream_detail") or []:
                if detail.get("name") == stream:
                    return detail.get("cluster") or {}
        return {}

    def _running(self) -> list[int]:
        return [number for number, node in enumerate(self.nodes) if node.running and not _still(node)]

    def _ask(self, number: int, what: str) -> dict[str, object]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._monitors[number]}/{what}", timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return {}

    def _wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} within {PATIENCE} s")
            time.sleep(LOOK)


def _still(node: Nats) -> bool:
    """Tell whether a process holds still."""
    return Path(f"/proc/{node.pid}/stat").read_text().rpartition(") ")[2].split()[0] in {"T", "t"}
