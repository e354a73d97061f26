"""Publish to a broker, or follow its topics, from a shell.

    python -m aiohttp_interceptors publish BROKER TOPIC [DATA]
    python -m aiohttp_interceptors tail BROKER TOPIC ...

BROKER is ``module:function``, a function of the application that makes its broker, or ``redis://…``, ``postgresql://…``,
or the path of a file of the SQLite broker. With the latter three nothing is trimmed: how much is kept is the
application's decision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from .exceptions import BrokerError, TopicFinished
from .hub.broker import Broker
from .hub.hub import Hub
from .hub.listener import Lagged
from .hub.record import Gap
from .sse import Event

READY_TIMEOUT = 10.0  # seconds that ``publish`` waits for the log to be read
KEEP_ALL = 2**53  # records; more than any log has
HELP = "module:function, redis://…, postgresql://…, or the path of an SQLite file"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_publish(options) if options.command == "publish" else _tail(options))
    except BrokenPipeError:  # of ``tail``, as in ``tail … | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at its exit
        return 0
    except (BrokerError, Lagged, TopicFinished, TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m aiohttp_interceptors", description="Publish and follow events.")
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser("publish", help="publish an event, and print its ID")
    publish.add_argument("broker", help=HELP)
    publish.add_argument("topic")
    publish.add_argument("data", nargs="?", help="the data; without it, that of standard input")
    publish.add_argument("--name", help="the event's name")
    publish.add_argument("--key", help="what the event is about: a later event of the same key supersedes it")
    publish.add_argument("--final", action="store_true", help="finish the topic: this is its last event")
    publish.add_argument("--tombstone", action="store_true", help="the key has no value any more")
    publish.add_argument("--ephemeral", action="store_true", help="do not keep the event")
    publish.add_argument("--idempotency-key", help="of several calls with the same key, only the first publishes")
    tail = commands.add_parser("tail", help="print a JSON object for each event, until interrupted")
    tail.add_argument("broker", help=HELP)
    tail.add_argument("topics", nargs="+", help="topic names and wildcards, such as 'orders.>'")
    tail.add_argument("--after", help="an event ID; the events after it come first")
    tail.add_argument("--replay", type=int, default=0, help="number of the latest events that come first")
    tail.add_argument("--limit", type=_positive, help="number of lines after which to stop")
    for command in publish, tail:
        command.add_argument("--stream", help="the stream of Redis, or the table of PostgreSQL, if not the default one")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return number


def _make_broker(name: str, stream: str | None) -> Broker:
    """Make the broker that an argument names. Raises ``ValueError`` if it names none."""
    scheme, separator, _ = name.partition("://")
    if not separator:
        module, colon, attribute = name.partition(":")
        if not colon:
            if not Path(name).exists():
                raise ValueError(f"there is no file {name!r}, which an application makes; or name module:function")
            return cast("Broker", _broker_class("sqlite", "SqliteBroker")(name, max_records=KEEP_ALL, max_age=None))
        sys.path.insert(0, "")  # as ``python -m`` of the module itself
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{name!r} cannot be imported: {error}") from error
        if not callable(make):
            raise TypeError(f"{name!r} is {make!r}; name a function that makes the broker")
        broker: Broker = make()
        return broker
    keep_all: dict[str, Any] = {"max_records": KEEP_ALL, "max_age": None}
    if scheme in {"redis", "rediss", "unix"}:
        options = keep_all if stream is None else {"stream": stream, **keep_all}
        return cast("Broker", _broker_class("redis", "RedisBroker")(name, **options))
    if scheme in {"postgres", "postgresql"}:
        options = keep_all if stream is None else {"table": stream, **keep_all}
        return cast("Broker", _broker_class("postgres", "PostgresBroker")(name, **options))
    raise ValueError(
        f"{name!r} is not redis://… or postgresql://…; for another broker, and for NATS, whose stream has the limits "
        "of the application's broker, name a function that makes it: module:function"
    )


def _broker_class(module: str, name: str) -> Any:
    return getattr(import_module(f"aiohttp_interceptors.brokers.{module}"), name)


async def _publish(options: argparse.Namespace) -> int:
    data = sys.stdin.read().removesuffix("\n") if options.data is None else options.data
    event, arguments = Event(data, options.name), {"key": options.key, "idempotency_key": options.idempotency_key}
    if options.final and (options.ephemeral or options.tombstone):
        raise ValueError("a final event is neither ephemeral nor a tombstone")
    hub = Hub(_make_broker(options.broker, options.stream))
    try:
        await _wait_until_ready(hub)
        if options.final:
            event_id: str | None = await hub.finish(options.topic, event, **arguments)
        else:
            event_id = await hub.publish(
                options.topic, event, ephemeral=options.ephemeral, tombstone=options.tombstone, **arguments
            )
    finally:
        await hub.close()
    print(event_id or "")  # noqa: T201
    return 0


async def _wait_until_ready(hub: Hub) -> None:
    """Wait until it is known which topics are finished, or for some seconds: then ``publish`` says what is wrong."""
    hub.open()
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_TIMEOUT):
            await hub._pending.wait(None)


async def _tail(options: argparse.Namespace) -> int:
    hub, count = Hub(_make_broker(options.broker, options.stream)), 0
    try:
        async with hub.listen(options.topics, after=options.after, replay=options.replay, on_gap="signal") as records:
            async for record in records:
                if isinstance(record, Gap):
                    line: dict[str, object] = {"gap": record.reason, "after": record.after, "first": record.first}
                else:
                    event = record.event
                    line = {"id": record.id, "topic": record.topic, "data": event.data}
                    more = {"name": event.name, "key": record.key, "tombstone": record.tombstone}
                    line |= {name: value for name, value in more.items() if value}
                count += 1
                print(json.dumps(line, ensure_ascii=False), flush=True)  # noqa: T201
                if options.limit is not None and count >= options.limit:
                    break
    finally:
        await hub.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
