"""The nodes of a Hub: leases, goodbyes, and control messages that cannot be understood."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys

import pytest

from aiohttp_interceptors.brokers.memory import MemoryBroker
from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub import nodes
from tests.hub.sink import live
from tests.hub.watcher import Cable, Cluster, join, quick, seen, watch
from tests.waiting import run_other_tasks, until, within

LEASE_TIMEOUT = 0.15


@pytest.fixture
async def cluster(monkeypatch):
    quick(monkeypatch, lease_timeout=LEASE_TIMEOUT)
    cluster = Cluster()
    yield cluster
    await cluster.close()


@pytest.fixture
async def hub(cluster):
    """A node that uses presence."""
    hub = await cluster.node()
    hub.presence("room")
    return hub


@pytest.fixture
async def cable(cluster):
    return Cable(cluster.log)


@pytest.fixture
async def other(cluster, cable):
    """Another node, whose connection can be cut."""
    hub = await cluster.node(cable)
    hub.presence("room")
    return hub


async def lapse() -> None:
    """Wait until the leases that are not renewed have expired."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 2 * LEASE_TIMEOUT
    await until(lambda: loop.time() > deadline)


class TestLeases:
    async def test_a_node_that_dies_loses_its_users(self, cluster, hub, cable, other):
        join(hub, "room", identity="ann")
        join(other, "room", identity="bob")
        watcher = watch(hub, "room")
        await until(lambda: watcher.present == {"room": {"ann", "bob"}})
        loop = asyncio.get_running_loop()
        died = loop.time()
        cable.cut = True
        await until(lambda: seen(hub) == {"ann"})
        assert loop.time() - died > LEASE_TIMEOUT - nodes.LEASE_INTERVAL - 0.01
        await until(lambda: watcher.present == {"room": {"ann"}})

    async def test_a_node_that_lives_keeps_its_users(self, cluster, hub, other):
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        watcher = watch(hub, "room")
        for _ in range(3):
            await lapse()
        assert watcher.told == [{"topic": "room", "present": ["bob"]}]

    async def test_a_user_of_two_nodes_stays_when_one_of_them_dies(self, cluster, hub, cable, other):
        third = await cluster.node()
        for each in other, third:
            join(each, "room", identity="ann")
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"ann", "bob"})
        cable.cut = True
        await until(lambda: seen(hub) == {"ann"})
        await lapse()
        assert seen(hub) == {"ann"}

    async def test_a_restarted_node_has_the_same_users_again(self, cluster, hub, cable, other):
        join(other, "room", identity="ann")
        await until(lambda: seen(hub) == {"ann"})
        cable.cut = True
        again = await cluster.node()
        join(again, "room", identity="ann")
        watcher = watch(hub, "room")
        await lapse()
        await lapse()
        assert seen(hub) == {"ann"}
        assert watcher.told == [{"topic": "room", "present": ["ann"]}]

    async def test_a_frozen_node_that_comes_back_is_asked_for_its_list(self, cluster, hub, cable, other):
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        cable.freeze()
        await until(lambda: seen(hub) == set())
        before = len(cluster.control_messages())
        cable.thaw()
        await until(lambda: seen(hub) == {"bob"})
        kinds = [message["type"] for message in cluster.control_messages()[before:]]
        assert "presence?" in kinds

    async def test_a_node_without_users_sends_nothing_and_is_asked_when_it_has_one(self, cluster, hub, other):
        await lapse()
        before = len(cluster.control_messages())
        await lapse()
        assert len(cluster.control_messages()) == before
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})

    async def test_a_lease_expires_after_an_outage_in_which_its_node_died(self, cluster, hub, cable, other):
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        cluster.log.stop()
        await until(lambda: not hub.ready)
        cable.cut = True
        await lapse()
        assert seen(hub) == {"bob"}
        cluster.log.restart()
        await until(lambda: seen(hub) == set())

    @pytest.mark.parametrize("error", [BrokerDown("not now"), OSError("a defect")], ids=repr)
    async def test_messages_that_could_not_be_sent_are_sent_again(self, cluster, hub, logged, error):
        class Unreliable(MemoryBroker):
            fails = 0

            async def publish(self, *arguments, **options):
                if self.fails:
                    self.fails -= 1
                    raise error
                return await super().publish(*arguments, **options)

        broker = Unreliable(cluster.log)
        other = await cluster.node(broker)
        other.presence("room")
        await run_other_tasks()
        broker.fails = 3
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        assert broker.fails == 0


class TestGoodbye:
    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch, hub):
        """A lease does not expire in these tests."""
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1000.0)

    async def test_the_others_learn_at_once_that_a_node_has_stopped(self, cluster, hub, other):
        join(other, "room", identity="bob")
        watcher = watch(hub, "room")
        await until(lambda: watcher.present == {"room": {"bob"}})
        await other.close()
        await until(lambda: watcher.present == {"room": set()})
        assert cluster.control_messages()[-1]["type"] == "bye"

    async def test_a_node_that_nobody_knows_says_nothing(self, cluster):
        silent = await cluster.node()
        before = cluster.log.end
        await live(silent, "room")
        await silent.close()
        assert cluster.log.end == before

    async def test_it_is_said_once(self, cluster, hub, other):
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        await other.close()
        await other.close()
        assert [message["type"] for message in cluster.control_messages()].count("bye") == 1

    async def test_a_node_closes_without_its_broker(self, cluster, hub, cable, other):
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        cable.cut = True
        await within(other.close())
        assert seen(hub) == {"bob"}

    async def test_a_broker_that_hangs_does_not_keep_the_node(self, monkeypatch, cluster, hub, cable, other, logged):
        monkeypatch.setattr(nodes, "BYE_TIMEOUT", 0.01)
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        cable.freeze()
        await within(other.close())
        assert "took_too_long" in [line["event"] for line in logged]
        cable.thaw()

    async def test_closing_leaves_no_task(self, cluster, hub):
        before = asyncio.all_tasks()
        other = await cluster.node()
        join(other, "room", identity="bob")
        await until(lambda: seen(hub) == {"bob"})
        await other.close()
        assert asyncio.all_tasks() <= before


MALFORMED = [
    b"",
    b"{",
    b"\xff",
    b"5",
    b"[]",
    b"{}",
    b'{"node":"n"}',
    b'{"type":"presence"}',
    b'{"type":"presence?","node":"n"}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"joined":[["room"]]}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"joined":[["room","x","y"]]}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"joined":5}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"ends":true,"joined":[["room",5]]}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"ends":true,"joined":[[5,"x"]]}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"ends":true,"joined":[["room.*","x"]]}',
    b'{"type":"presence","number":1,"node":"n","begins":true,"left":[[{},[]]]}',
    b'{"type":"run","node":"n"}',
    b'{"type":"runs","node":"n","runs":[5]}',
    b'{"type":"cancel","node":"n"}',
    b"[" * 100_000,
]


FORKING = """
import asyncio, os, signal, sys
from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.sqlite import SqliteBroker

async def work(name):
    async with hub.listen("room", identity=name):
        while hub.presence("room") != {"ann", "bob"}:
            await asyncio.sleep(0.01)
        print(name, "sees both", flush=True)
        await asyncio.Event().wait()

hub = Hub(SqliteBroker(sys.argv[1]))
children = []
for name in "ann", "bob":
    children.append(os.fork())
    if not children[-1]:
        asyncio.run(work(name))
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
"""


class TestMessages:
    @pytest.mark.parametrize("content", MALFORMED)
    async def test_a_malformed_message_is_logged_and_harmless(self, cluster, hub, other, content, logged):
        join(other, "room", identity="bob")
        sink = await live(hub, ">")
        offset = cluster.send(content)
        await until(lambda: hub.history.end >= offset)
        await hub.publish("room", "x")
        join(hub, "room", identity="ann")
        await until(lambda: seen(hub) == seen(other) == {"ann", "bob"})
        await until(lambda: sink.texts == ["x"])
        errors = [line for line in logged if line["event"] == "hub_control_malformed"]
        assert len(errors) == 2  # by each node
        assert all(len(line["content"]) <= 200 for line in errors)
        assert not any("exc_info" in line for line in logged)

    @pytest.mark.parametrize(
        "content",
        [{"type": "later release", "node": "n", "more": 5}, {"type": "bye", "node": 5}, {"type": "bye", "node": "n"}],
    )
    async def test_messages_of_a_later_release_are_ignored(self, cluster, hub, content, logged):
        join(hub, "room", identity="ann")
        offset = cluster.send(json.dumps(content).encode())
        await until(lambda: hub.history.end >= offset)
        assert seen(hub) == {"ann"}
        assert logged == []

    async def test_a_node_that_says_nothing_more_is_forgotten(self, cluster, hub):
        list_of_a_ghost = {"type": "presence", "number": 1, "begins": True, "ends": True, "joined": [["room", "ghost"]]}
        cluster.send(json.dumps({**list_of_a_ghost, "node": "n"}).encode())
        await until(lambda: seen(hub) == {"ghost"})
        await until(lambda: seen(hub) == set())

    async def test_a_node_that_starts_does_not_believe_what_is_old(self, monkeypatch, cluster):
        """Other nodes answer its question; one that is gone does not."""
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1000.0)
        cluster.send(b'{"type":"presence","number":1,"node":"n","begins":true,"ends":true,"joined":[["room","ghost"]]}')
        hub = await cluster.node(ready=False)
        watcher = watch(hub, "room")
        await until(lambda: hub.ready)
        join(hub, "room", identity="ann")
        await until(lambda: watcher.present == {"room": {"ann"}})
        assert not any("ghost" in str(each) for each in watcher.told)

    async def test_a_list_replaces_the_one_before(self, monkeypatch, cluster, hub):
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1000.0)
        watcher = watch(hub, "room")

        numbers = itertools.count(1)

        async def send(**content):
            message = {"type": "presence", "node": "n", "number": next(numbers), **content}
            offset = cluster.send(json.dumps(message).encode())
            await until(lambda: hub.history.end >= offset)

        await send(begins=True, ends=True, joined=[["room", "a"], ["room", "b"]])
        await send(begins=True, joined=[["room", "c"]])
        assert seen(hub) == {"a", "b", "c"}  # who is not in the list has left when it is complete
        await send(ends=True, joined=[["room", "b"]])
        await until(lambda: watcher.present == {"room": {"b", "c"}})
        assert watcher.told[-1] == {"topic": "room", "left": "a"}
        await send(begins=True, ends=True, joined=[])
        assert seen(hub) == set()

    async def test_a_message_that_is_stored_late_changes_nothing(self, monkeypatch, cluster, hub):
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1000.0)
        offset = 0
        for number, change in (1, {"begins": True, "ends": True}), (3, {"left": [["room", "x"]]}), (2, {}):
            message = {"type": "presence", "node": "n", "number": number, "joined": [["room", "x"]], **change}
            if "left" in change:
                del message["joined"]
            offset = cluster.send(json.dumps(message).encode())
        await until(lambda: hub.history.end >= offset)
        assert seen(hub) == set()

    async def test_a_change_without_a_list_is_a_question(self, cluster, hub):
        offset = cluster.send(b'{"type":"presence","number":1,"node":"n","joined":[["room","x"]]}')
        await until(lambda: cluster.log.end > offset and hub.history.end > offset)
        assert seen(hub) == set()
        question = cluster.control_messages()[-1]
        assert (question["type"], question["to"]) == ("presence?", "n")

    async def test_nodes_have_different_ids(self, cluster, hub):
        others = [await cluster.node() for _ in range(3)]
        for number, other in enumerate(others):
            join(other, "room", identity=f"{number}")
        await until(lambda: seen(hub) == {"0", "1", "2"})
        assert len({message["node"] for message in cluster.control_messages()}) == 4

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    async def test_workers_that_share_a_hub_made_before_a_fork_are_different_nodes(self, tmp_path):
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FORKING,
            tmp_path / "hub.db",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            lines = [await within(program.stdout.readline()) for _ in range(2)]
        finally:
            await program.communicate(b"")
        assert sorted(lines) == [b"ann sees both\n", b"bob sees both\n"]

    @pytest.mark.parametrize("count", [20])
    async def test_nodes_that_start_ask_once_each(self, cluster, count):
        hubs = [await cluster.node() for _ in range(count)]
        for number, hub in enumerate(hubs):
            join(hub, f"room.{number}", identity="ann", watches=False)
        await until(lambda: all(seen(hub, f"room.{number}") for hub in hubs for number in range(count)))
        kinds = [message["type"] for message in cluster.control_messages()]
        assert kinds.count("presence?") <= 2 * count
