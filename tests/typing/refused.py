"""What must not type-check. Each wrong line names mypy's error code and pyright's rule. ``check.py`` compares them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aiohttp import web

from aiohttp_interceptors import (
    Context,
    ContextKey,
    Event,
    EventChannel,
    Hub,
    RequestContext,
    as_handler,
    before,
    event_stream,
    execute,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.ready import bearer

NAME = ContextKey[str]("name")
hub = Hub()


def values(context: RequestContext) -> None:
    context[NAME] = 1  # refused: mypy[misc] pyright[reportArgumentType, reportCallIssue]
    context[1] = "a number is no key"  # refused: mypy[call-overload] pyright[reportArgumentType, reportCallIssue]
    length: int = context[NAME]  # refused: mypy[assignment] pyright[reportAssignmentType]
    print(length, context["name"].upper())  # refused: mypy[attr-defined] pyright[reportAttributeAccessIssue]
    context.get(NAME).upper()  # refused: mypy[union-attr] pyright[reportOptionalMemberAccess]
    context.response = "text"  # refused: mypy[assignment] pyright[reportAttributeAccessIssue]


async def page(request: web.Request) -> web.Response:
    number: int = RequestContext.of(request)[NAME]  # refused: mypy[assignment] pyright[reportAssignmentType]
    name = RequestContext.find(request)[NAME]  # refused: mypy[index] pyright[reportOptionalSubscript]
    return web.Response(text=f"{name} {number}")


def events() -> None:
    Event(b"bytes")  # refused: mypy[arg-type] pyright[reportArgumentType]
    Event("data", event="name")  # refused: mypy[call-arg] pyright[reportCallIssue]
    Event("data", retry="1")  # refused: mypy[arg-type] pyright[reportArgumentType]
    Event("data").data = "frozen"  # refused: mypy[misc] pyright[reportAttributeAccessIssue]


async def ticks(channel: EventChannel, context: RequestContext) -> None:
    await channel.put(1)  # refused: mypy[arg-type] pyright[reportArgumentType]
    channel.put(Event("not awaited"))  # refused: mypy[unused-coroutine] pyright[reportUnusedCoroutine]


@event_stream(heartbeat="5")  # refused: mypy[call-overload, untyped-decorator] pyright[reportArgumentType]
async def clock(context: RequestContext) -> AsyncGenerator[str]:
    yield "now"


@before  # refused: mypy[arg-type] pyright[reportArgumentType]
def two(context: RequestContext, more: int) -> None: ...


@on_error("LookupError")  # refused: mypy[arg-type] pyright[reportArgumentType]
def not_found(context: RequestContext, error: LookupError) -> None: ...


async def publish() -> None:
    await hub.publish(1, "data")  # refused: mypy[arg-type] pyright[reportArgumentType]
    await hub.publish("news", "data", keys="a")  # refused: mypy[call-arg] pyright[reportCallIssue]
    hub.publish("news", "not awaited")  # refused: mypy[unused-coroutine] pyright[reportUnusedCoroutine]


def number_of_topics(context: RequestContext) -> int:
    return 1


topic_stream(hub, number_of_topics)  # refused: mypy[arg-type] pyright[reportArgumentType]
start_event_stream(page)  # refused: mypy[arg-type] pyright[reportArgumentType]
as_handler(1)  # refused: mypy[arg-type] pyright[reportArgumentType]
interceptor_middleware("log")  # refused: pyright[reportArgumentType]
bearer("secret")  # refused: mypy[arg-type] pyright[reportArgumentType]
setup(hub)  # refused: mypy[arg-type] pyright[reportArgumentType]


def of_a_request(context: RequestContext) -> None: ...


async def chain() -> None:
    await execute(Context(), before(of_a_request))  # refused: mypy[misc] pyright[reportArgumentType]
