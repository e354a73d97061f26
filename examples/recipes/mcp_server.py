"""An MCP endpoint (Streamable HTTP, revision 2025-11-25), whose streams a client resumes after it was cut off."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from hashlib import sha256
from json import dumps
from secrets import token_hex
from typing import Any

from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    ContextKey,
    Event,
    Hub,
    Lagged,
    Record,
    RequestContext,
    RunExists,
    TooManyRuns,
    TopicFinished,
    as_handler,
    before,
    event_stream,
    interceptor_middleware,
    setup,
)
from aiohttp_interceptors.ready import InvalidBody, json_body

VERSIONS = ("2025-11-25", "2025-06-18")
ORIGINS = {"http://localhost:8080"}  # change: the pages that may use this server
TOOLS = [{"name": "count", "inputSchema": {"type": "object", "properties": {"to": {"type": "integer"}}}}]
MESSAGE, SESSION = ContextKey[dict[str, Any]]("message"), ContextKey[str]("session")
TOPIC, AFTER = ContextKey[str]("topic"), ContextKey[str | None]("after")
LISTENING = "0" * 32  # the name of the stream of a GET without Last-Event-ID
MAX_SESSIONS, MAX_COUNT = 10_000, 1000
hub = Hub(max_runs=100)
# Hashes of the IDs, so that topics and owners do not give access. The one that was used last is last.
sessions: dict[str, None] = {}  # change: your sessions, and whose they are
readers: dict[str, RequestContext] = {}  # by topic: a message is sent on one connection only


def check_message(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(params := value.get("params", {}), dict):
        raise InvalidBody("expected a JSON-RPC message")
    if not isinstance(meta := params.get("_meta", {}), dict):
        raise InvalidBody("expected an object", "$.params._meta")
    for number in value.get("id", 0), meta.get("progressToken", 0):
        if type(number) not in (int, str):
            raise InvalidBody("an ID and a progressToken are a string or an integer")
    return value


def reply(number: object, **content: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, **content}


def text(value: str, *, is_error: bool = False) -> dict[str, object]:
    return {"content": [{"type": "text", "text": value}], "isError": is_error}


async def call(number: object, params: dict[str, Any]) -> AsyncGenerator[object, None]:  # change: your tools
    match params.get("arguments"):
        case {"to": int(last)} if last <= MAX_COUNT:
            token = params.get("_meta", {}).get("progressToken")
        case _:
            yield reply(number, result=text(f"to is an integer up to {MAX_COUNT}", is_error=True))
            return
    for step in range(1, last + 1):
        await asyncio.sleep(0.2)
        if token is not None:
            progress = {"progressToken": token, "progress": step, "total": last}
            yield {"jsonrpc": "2.0", "method": "notifications/progress", "params": progress}
    yield reply(number, result=text(f"counted to {last}"))


def digest(value: str) -> str:
    return sha256(value.encode(errors="replace")).hexdigest()[:32]


def begin_session() -> str:
    if len(sessions) >= MAX_SESSIONS:  # the client of the oldest one gets a 404, and begins a new one
        del sessions[next(iter(sessions))]
    session = token_hex()
    sessions[digest(session)] = None
    return session


def require_session(context: RequestContext) -> str:
    if not context[SESSION]:
        raise web.HTTPBadRequest(text="Mcp-Session-Id is missing")
    return context[SESSION]


@before
def check(context: RequestContext) -> None:
    headers = context.request.headers
    if headers.get("Origin") not in {None, *ORIGINS}:
        raise web.HTTPForbidden
    if headers.get("MCP-Protocol-Version", VERSIONS[0]) not in VERSIONS:
        raise web.HTTPBadRequest(text="unsupported MCP-Protocol-Version")
    context[SESSION] = session = digest(headers["Mcp-Session-Id"]) if headers.get("Mcp-Session-Id") else ""
    if session:
        if session not in sessions:
            raise web.HTTPNotFound
        sessions[session] = sessions.pop(session)


def topic_of(session: str, number: object) -> str:
    """Name the stream of a request by its ID, which a client uses once in a session."""
    return f"mcp.{session}.{digest(dumps(number))}"


@event_stream(owner=lambda context: f"session:{context[SESSION]}")
async def messages(context: RequestContext) -> AsyncIterator[Event]:
    """Yield the messages of a stream. An event ID is the name of the stream, and where the client is in it."""
    topic, after = context[TOPIC], context[AFTER]
    name = topic.rpartition(".")[2]
    if (previous := readers.get(topic)) is not None and previous.stream is not None:
        previous.stream.end(CloseReason.KICKED)
    readers[topic] = context
    try:
        version = context.request.headers.get("MCP-Protocol-Version", VERSIONS[0])
        if context.last_event_id is None and after is not None and version == VERSIONS[0]:  # older clients parse it
            yield Event("", id=f"{name}_{after}")  # from here on the client can resume
        async for record in hub.listen(topic, after=after):
            if isinstance(record, Record) and record.event.name is None:  # the end of a run is none of its messages
                yield Event(record.event.data, id=f"{name}_{record.id}")
    except Lagged:
        raise web.HTTPNotFound from None  # the history does not have the messages any more
    finally:
        if readers.get(topic) is context:
            del readers[topic]


async def start_call(session: str, number: object, params: dict[str, Any]) -> tuple[str, str | None]:
    """Start the tool, and return its topic and where its messages begin."""
    failed = Event.json(reply(number, error={"code": -32603, "message": "the tool has failed"}))
    try:
        run = await hub.run(topic_of(session, number), call(number, params), error_event=failed)
    except (RunExists, TopicFinished):
        raise web.HTTPBadRequest(text="this request ID was used before") from None
    except TooManyRuns:
        raise web.HTTPServiceUnavailable from None
    return run.topic, run.start_id


@before
async def post(context: RequestContext) -> None:
    message = context[MESSAGE]
    method, number, params = message.get("method"), message.get("id"), message.get("params", {})
    if method == "initialize" and number is not None:
        version = params.get("protocolVersion")
        result: dict[str, object] = {
            "protocolVersion": version if version in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "recipe", "version": "1"},
        }
        headers = {"Mcp-Session-Id": begin_session()}
        context.response = web.json_response(reply(number, result=result), headers=headers)
        return
    session = require_session(context)
    if method == "notifications/cancelled":
        run = hub.find_run(topic_of(session, params.get("requestId")))
        if run is not None:
            await run.cancel()
        context.response = web.Response(status=202)
    elif number is None or method is None:  # a notification, or a response
        context.response = web.Response(status=202)
    elif method == "ping":
        context.response = web.json_response(reply(number, result={}))
    elif method == "tools/list":
        context.response = web.json_response(reply(number, result={"tools": TOOLS}))
    elif method == "tools/call" and params.get("name") not in [tool["name"] for tool in TOOLS]:
        context.response = web.json_response(reply(number, error={"code": -32602, "message": "unknown tool"}))
    elif method == "tools/call":
        context[TOPIC], context[AFTER] = await start_call(session, number, params)
    else:
        context.response = web.json_response(reply(number, error={"code": -32601, "message": "unknown method"}))


@before
def resume(context: RequestContext) -> None:
    session = require_session(context)
    name, _, after = (context.last_event_id or LISTENING).partition("_")
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise web.HTTPBadRequest(text="Last-Event-ID is not one of this server")
    context[TOPIC], context[AFTER] = f"mcp.{session}.{name}", after or None


@before
async def end(context: RequestContext) -> None:
    session = require_session(context)
    sessions.pop(session, None)
    await hub.disconnect(f"session:{session}")
    context.response = web.Response(status=204)


app = web.Application(middlewares=[interceptor_middleware(check)])
setup(app, hub)
app.router.add_post("/mcp", as_handler(json_body(MESSAGE, check_message), post, messages))
app.router.add_get("/mcp", as_handler(resume, messages))
app.router.add_delete("/mcp", as_handler(end))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
