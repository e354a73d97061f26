"""The exceptions of the library.

With the person who has to act on each::

    Exception
    ├── RuntimeError
    │   ├── BrokerError          the publisher, who may publish again:
    │   │   ├── BrokerDown           the broker does not answer, and the event was not stored
    │   │   ├── OutcomeUnknown       the event may have been stored: repeat it with the same ``idempotency_key``
    │   │   └── BrokerRefused        the operator: the broker rejects the event, and will again
    │   ├── TopicFinished        the publisher: the topic was finished, and accepts no more events
    │   ├── RunExists            the caller of ``Hub.run``: read along, the topic has a run already
    │   ├── TooManyRuns          the caller of ``Hub.run``: retry later, the process has ``max_runs``
    │   ├── QueueClosed          the author of a stage: the queue was changed while the chain was leaving
    │   ├── NoResponse           the author of a route: the chain ended without a response
    │   └── ResponseCommitted    the author of a stage: the headers were sent (logged, never raised into a stage)
    ├── ValueError
    │   └── EventTooLarge        the producer: the event has more bytes than ``max_event_size``
    ├── asyncio.QueueFull
    │   └── ChannelFull          the producer: wait with ``put``, or drop the event
    └── asyncio.QueueShutDown    (since Python 3.13; before that ``Exception``)
        └── ChannelClosed        a producer that uses the queue directly: stop, the stream has ended

``StopReconnecting`` (in ``web``) is a response: raising it answers 204.

Wrong arguments raise a plain ``TypeError`` or ``ValueError`` with the value in its message.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = [
    "BrokerDown",
    "BrokerError",
    "BrokerRefused",
    "ChannelClosed",
    "ChannelFull",
    "EventTooLarge",
    "NoResponse",
    "OutcomeUnknown",
    "QueueClosed",
    "ResponseCommitted",
    "RunExists",
    "TooManyRuns",
    "TopicFinished",
]


EXIT_EXCEPTIONS = (KeyboardInterrupt, SystemExit)
"""The exceptions that end the process. They are always raised again, never treated as the error of one stream."""


class BrokerError(RuntimeError):
    """A broker could not store an event, or could not be read."""


class BrokerDown(BrokerError):
    """The broker does not answer. The event was not stored, so publishing it again is safe."""


class OutcomeUnknown(BrokerError):
    """The event may have been stored. Publishing it again is safe with the same ``idempotency_key``."""


class BrokerRefused(BrokerError):
    """The broker answered and rejected the event. It was not stored, and publishing it again does not help."""


class TopicFinished(RuntimeError):
    """The topic was finished with ``Hub.finish``, and accepts no more events. The event was not stored."""


class RunExists(RuntimeError):
    """The topic has a run already, on this node or on another one. ``Hub.find_run`` returns it."""


class TooManyRuns(RuntimeError):
    """The process has ``max_runs`` runs already. The run was not started."""


class QueueClosed(RuntimeError):
    """A stage other than ``enter`` tried to change the queue of the chain."""


class NoResponse(RuntimeError):
    """A chain without a handler ended, and no interceptor had attached a response."""


class ResponseCommitted(RuntimeError):
    """Code tried to change a response after its headers had been sent. The change was dropped."""


class EventTooLarge(ValueError):
    """An encoded event has more bytes than the stream allows. It was not queued."""


class ChannelFull(asyncio.QueueFull):
    """``put_nowait`` found no room. The event was not queued."""


if sys.version_info >= (3, 13):

    class ChannelClosed(asyncio.QueueShutDown):
        """The channel is closed, or its stream has ended: its queue accepts no more events."""

else:

    class ChannelClosed(Exception):
        """The channel is closed, or its stream has ended: its queue accepts no more events."""
