"""What an application writes, which must type-check as it is. ``check.py`` checks it; it is not run."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import assert_type

from aiohttp import web

from aiohttp_interceptors import (
    Context,
    ContextKey,
    Event,
    EventChannel,
    Gap,
    Hub,
    Interceptor,
    RequestContext,
    Snapshot,
    after,
    around,
    as_handler,
    before,
    event_stream,
    execute,
    intercept,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import CLAIMS, InvalidToken, bearer, request_id


@dataclass(frozen=True)
class User:
    name: str


USER = ContextKey[User]("user")


async def verify(token: str) -> dict[str, object]:
    if token != "secret":  # an example
        raise InvalidToken
    return {"sub": "ada"}


# Interceptors.


@before
def authenticate(context: RequestContext) -> None:
    context[USER] = User(context.request.query["user"])


@after
async def log(context: RequestContext) -> None:
    print(context.request.path, context[USER].name, context.response)


@around
async def transaction(context: RequestContext) -> AsyncGenerator[None]:
    context["open"] = True
    yield
    assert_type(context["open"], object)


@on_error(LookupError)
def not_found(context: RequestContext, error: LookupError) -> None:
    context.response = web.Response(status=404, text=str(error))


class Timing:
    """An object with stage methods."""

    def enter(self, context: RequestContext) -> None:
        context.response_headers["X-Timed"] = "1"

    async def leave(self, context: RequestContext) -> None:
        context.on_commit(lambda response: None)


async def page(request: web.Request) -> web.Response:
    context = RequestContext.of(request)
    assert_type(context, RequestContext)
    assert_type(context[USER], User)
    assert_type(context.get(USER), User | None)
    found = RequestContext.find(request)
    assert_type(found, RequestContext | None)
    return web.Response(text=context[USER].name)


@intercept(bearer(verify), authenticate)
async def account(request: web.Request) -> web.Response:
    subject: str = RequestContext.of(request)[CLAIMS]["sub"]
    return web.json_response({"subject": subject, "ends": float(RequestContext.of(request)[CLAIMS]["exp"])})


# Streams.


@event_stream
async def clock(context: RequestContext) -> AsyncGenerator[str | Event]:
    yield context[USER].name
    yield Event("data", name="tick", id=1)
    yield Event.json({"price": 1.5}, name="price")


@event_stream(heartbeat=5, owner=lambda context: context[USER].name)
async def users(context: RequestContext) -> AsyncGenerator[User]:
    yield context[USER]


async def ticks(channel: EventChannel, context: RequestContext) -> None:
    number = int(context.last_event_id or 0)
    while await channel.put(Event(f"tick {number}", id=number + 1)):
        number += 1


# The Hub.


async def everything(context: RequestContext) -> Snapshot:
    return Snapshot([Event("all")])


def topics(context: RequestContext) -> list[str]:
    return [f"users.{context[USER].name}"]


def on_gap(gap: Gap) -> Event:
    return Event(gap.reason, name="hole")


hub = Hub(SqliteBroker("events.sqlite3"), history=100)
small = Hub(MemoryBroker(MemoryLog()))


async def change(user: User) -> None:
    await hub.publish("news", user, key=user.name)
    await hub.publish("news", Event.json({"user": user.name}), idempotency_key="1")


# The application.

app = web.Application(middlewares=[interceptor_middleware(request_id(), log, Timing())])
setup(app, hub)
app.router.add_get("/clock", clock)
app.router.add_get("/page", as_handler(authenticate, transaction, not_found, page))
app.router.add_get("/ticks", as_handler(authenticate, start_event_stream(ticks, heartbeat=5)))
app.router.add_get("/news", topic_stream(hub, "news", replay="latest"))
app.router.add_get("/users", as_handler(authenticate, start_topic_stream(hub, topics)))


# A chain without a request.

NUMBER = ContextKey[int]("number")


@before
def add(context: Context) -> None:
    context[NUMBER] = context.get(NUMBER, 0) + 1


async def chain() -> int:
    result = await execute(Context(), add, Interceptor("plain", enter=add.enter))
    assert_type(result, Context)
    return result[NUMBER]
