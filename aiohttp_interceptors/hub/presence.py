"""Presence: who has an open stream of a topic, on all nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..sse import Event
from .nodes import ControlMessage, Nodes, NodeState
from .topics import check_pattern, is_wildcard

__all__ = ["Presence", "check_identity"]


MAX_IDENTITY = 255  # characters
BATCH_SIZE = 32 * 1024  # bytes of topics and identities in one message

Pair = tuple[str, str]  # a topic and an identity


def check_identity(identity: object) -> str:
    """Return an identity. Raises ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(identity, str):
        raise TypeError(f"an identity is a str, such as a user's ID, not {identity!r}")
    if not (0 < len(identity) <= MAX_IDENTITY and identity.isprintable()):
        raise ValueError(f"an identity is 1 to {MAX_IDENTITY} printable characters, not {identity[:300]!r}")
    return identity


class Presence(NodeState):
    """The identities that are present in each topic.

    An identity is present in a topic while it has a stream of it on any node. Wildcards do not count.

    Args:
        on_change: Called with a topic, an identity, and whether it has joined or left.
    """

    def __init__(self, on_change: Callable[[str, str, bool], None]) -> None:
        self._on_change = on_change
        self._nodes: Nodes | None = None
        self._streams: dict[object, str] = {}  # the identities of this node's subscriptions
        self._local: dict[Pair, int] = {}  # numbers of this node's streams
        self._remote: dict[str, dict[Pair, None]] = {}  # by node
        self._unconfirmed: dict[str, dict[Pair, None]] = {}  # by node, until its list is complete
        self._present: dict[str, dict[str, int]] = {}  # by topic and identity, the number of nodes
        self._changed: dict[Pair, None] = {}  # to tell the other nodes
        self._list_due = True
        self._number = 0  # of the latest message of this node
        self._numbers: dict[str, int] = {}  # of the latest message of each other node
        self._questions: dict[str, None] = {}  # nodes to ask for their list; "" asks all

    def share(self, nodes: Nodes) -> None:
        """Share the presence with the other nodes of the Hub."""
        if self._nodes is not None:
            return
        if nodes.caught_up_now:
            nodes.wake()  # raises in another thread than the event loop's
        self._nodes = nodes
        nodes.add_state(self)
        if nodes.caught_up_now:
            self.caught_up()

    def members(self, topic: str) -> frozenset[str]:
        """Return the identities that are present in a topic."""
        return frozenset(self._present.get(topic, ()))

    # The streams of this node.

    def joined(self, stream: object, identity: str, topics: Iterable[str]) -> None:
        """Add a stream with an identity."""
        self._streams[stream] = identity
        self.topics_changed(stream, (), topics)

    def topics_changed(self, stream: object, before: Iterable[str], topics: Iterable[str]) -> None:
        """Handle that the topics of a stream have changed. Does nothing for a stream without an identity."""
        identity = self._streams.get(stream)
        if identity is not None:
            self._change_topics(identity, before, topics)

    def _change_topics(self, identity: str, before: Iterable[str], topics: Iterable[str]) -> None:
        left, joined = set(before), set(topics)
        for topic in joined - left:
            if not is_wildcard(topic):
                self._count_local((topic, identity), 1)
        for topic in left - joined:
            if not is_wildcard(topic):
                self._count_local((topic, identity), -1)

    def left(self, stream: object, topics: Iterable[str]) -> None:
        """Remove a stream that has ended. Idempotent."""
        identity = self._streams.pop(stream, None)
        if identity is not None:
            self._change_topics(identity, topics, ())

    def _count_local(self, pair: Pair, change: int) -> None:
        before = self._local.get(pair, 0)
        after = before + change
        if after:
            self._local[pair] = after
        else:
            del self._local[pair]
        if bool(before) == bool(after):
            return
        self._count_node(pair, change)
        if self._nodes is not None:
            self._changed[pair] = None
            self._nodes.wake()

    def _count_node(self, pair: Pair, change: int) -> None:
        """Add or remove a node with an identity, and report it if that is the first or the last one."""
        topic, identity = pair
        identities = self._present.setdefault(topic, {})
        count = identities.get(identity, 0) + change
        if count:
            identities[identity] = count
        else:
            del identities[identity]
            if not identities:
                del self._present[topic]
        if count == (change > 0):
            self._on_change(topic, identity, change > 0)

    # Other nodes.

    def receive(self, node: str, message: ControlMessage, age: float) -> None:  # noqa: ARG002
        """Handle a message of a node. Those that were sent before this node caught up are not current."""
        nodes, kind = self._nodes, message["type"]
        if nodes is None or node == nodes.id or not nodes.caught_up_now:
            return
        if kind == "presence?":
            if message["to"] in ("", nodes.id):
                self._list_due = True
                nodes.wake()
        elif kind == "presence":
            self._apply(node, message)

    def _apply(self, node: str, message: ControlMessage) -> None:
        joined, left = _read_pairs(message, "joined"), _read_pairs(message, "left")
        number = int(message["number"])
        if number <= self._numbers.get(node, 0):
            return  # a broker may store a message late that was given up
        self._numbers[node] = number
        if message.get("begins"):
            self._unconfirmed[node] = dict(self._remote.setdefault(node, {}))
        pairs = self._remote.get(node)
        if pairs is None:  # its lease had expired, or its list was missed
            self._questions[node] = None
            return
        unconfirmed = self._unconfirmed.get(node, {})
        for pair in joined:
            unconfirmed.pop(pair, None)
            if pair not in pairs:
                pairs[pair] = None
                self._count_node(pair, 1)
        if message.get("ends"):
            left += self._unconfirmed.pop(node, {})
        for pair in left:
            if pair in pairs:
                del pairs[pair]
                self._count_node(pair, -1)

    def node_died(self, node: str) -> None:
        """Remove the identities of a node."""
        self._unconfirmed.pop(node, None)
        self._numbers.pop(node, None)
        for pair in self._remote.pop(node, {}):
            self._count_node(pair, -1)

    def caught_up(self) -> None:
        """Ask the other nodes for their lists, and send that of this node."""
        self._questions = {"": None}
        self._list_due = True
        if self._nodes is not None:
            self._nodes.wake()

    def send_failed(self) -> None:
        """Send everything again."""
        self.caught_up()

    def leases(self) -> list[ControlMessage]:
        """Return a message without a change, if anybody is present on this node."""
        return [self._numbered({})] if self._local else []

    def _numbered(self, message: ControlMessage) -> ControlMessage:
        self._number += 1
        return {"type": "presence", "number": self._number, **message}

    def unsent(self) -> Iterator[ControlMessage]:
        """Yield the list of this node, or what has changed since then, and questions."""
        if self._list_due:
            self._list_due = False
            self._changed = {}
            for message in _list_messages(list(self._local)):
                yield self._numbered(message)
        changed, self._changed = list(self._changed), {}
        for batch in _batches(changed):
            joined = [pair for pair in batch if pair in self._local]
            yield self._numbered({"joined": joined, "left": [pair for pair in batch if pair not in self._local]})
        questions, self._questions = self._questions, {}
        for node in questions:
            yield {"type": "presence?", "to": node}


def _list_messages(pairs: list[Pair]) -> Iterator[ControlMessage]:
    batches = _batches(pairs) or [[]]
    for number, batch in enumerate(batches):
        yield {"begins": number == 0, "ends": number == len(batches) - 1, "joined": batch}


def _batches(pairs: list[Pair]) -> list[list[Pair]]:
    """Split pairs into batches of about ``BATCH_SIZE`` bytes."""
    batches: list[list[Pair]] = []
    size = BATCH_SIZE
    for topic, identity in pairs:
        if size >= BATCH_SIZE:
            batches.append([])
            size = 0
        batches[-1].append((topic, identity))
        size += len(topic.encode()) + len(identity.encode())
    return batches


def _read_pairs(message: ControlMessage, name: str) -> list[Pair]:
    """Return the pairs of a message. Raises ``ValueError`` if one is invalid."""
    pairs = [(check_pattern(topic), check_identity(identity)) for topic, identity in message.get(name, ())]
    if any(is_wildcard(topic) for topic, _ in pairs):
        raise ValueError("an identity is present in a topic, not in a wildcard")
    return pairs


def presence_event(name: str, topic: str, **change: object) -> Event:
    """Return the event that tells a stream who is present in a topic, or who has joined or left."""
    return Event.json({"topic": topic, **change}, name=name)
