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
hub = Hub()
sessions: set[str] = set()  # change: your sessions, and whose they are
readers: dict[str, RequestContext] = {}  # by topic: a message is sent on one connection only


def check_message(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("params", {}), dict):
        raise InvalidBody("expected a JSON-RPC message")
    return value


def reply(number: object, **content: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, **content}


async def call(message: dict[str, Any]) -> AsyncGenerator[object, None]:  # change: your tools
    params = message.get("params", {})
    last, token = int(params["arguments"]["to"]), params.get("_meta", {}).get("progressToken")
    for number in range(1, last + 1):
        await asyncio.sleep(0.2)
        if token is not None:
            progress = {"progressToken": token, "progress": number, "total": last}
            yield {"jsonrpc": "2.0", "method": "notifications/progress", "params": progress}
    yield reply(message["id"], result={"content": [{"type": "text", "text": f"counted to {last}"}]})


@before
def check(context: RequestContext) -> None:
    headers = context.request.headers
    if headers.get("Origin") not in {None, *ORIGINS}:
        raise web.HTTPForbidden
    if headers.get("MCP-Protocol-Version", VERSIONS[0]) not in VERSIONS:
        raise web.HTTPBadRequest(text="unsupported MCP-Protocol-Version")
    context[SESSION] = headers.get("Mcp-Session-Id", "")
    if context[SESSION] and context[SESSION] not in sessions:
        raise web.HTTPNotFound


def topic_of(session: str, number: object) -> str:
    """Name the stream of a request by its ID, which a client uses once in a session."""
    return f"mcp.{session}.{sha256(dumps(number).encode()).hexdigest()[:32]}"


@event_stream(owner=lambda context: f"session:{context[SESSION]}")
async def messages(context: RequestContext) -> AsyncIterator[Event]:
    """Yield the messages of a stream. An event ID is the name of the stream, and where the client is in it."""
    topic, after = context[TOPIC], context[AFTER]
    name = topic.rpartition(".")[2]
    if (previous := readers.get(topic)) is not None and previous.stream is not None:
        previous.stream.end(CloseReason.KICKED)
    readers[topic] = context
    try:
        if context.last_event_id is None and after is not None:
            yield Event("", id=f"{name}_{after}")  # from here on the client can resume
        async for record in hub.listen(topic, after=after):
            if isinstance(record, Record) and record.event.name is None:  # the end of a run is none of its messages
                yield Event(record.event.data, id=f"{name}_{record.id}")
    except Lagged:
        raise web.HTTPNotFound from None  # the history does not have the messages any more
    finally:
        if readers.get(topic) is context:
            del readers[topic]


@before
async def post(context: RequestContext) -> None:
    message, session = context[MESSAGE], context[SESSION]
    method, number, params = message.get("method"), message.get("id"), message.get("params", {})
    if method == "initialize":
        sessions.add(session := token_hex())
        version = params.get("protocolVersion")
        result: dict[str, object] = {
            "protocolVersion": version if version in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "recipe", "version": "1"},
        }
        headers = {"Mcp-Session-Id": session}
        context.response = web.json_response(reply(number, result=result), headers=headers)
    elif not session:
        raise web.HTTPBadRequest(text="Mcp-Session-Id is missing")
    elif method == "notifications/cancelled":
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
    elif method == "tools/call":
        failed = Event.json(reply(number, error={"code": -32603, "message": "the tool has failed"}))
        try:
            run = await hub.run(topic_of(session, number), call(message), error_event=failed)
        except (RunExists, TopicFinished):
            raise web.HTTPBadRequest(text="this request ID was used before") from None
        context[TOPIC], context[AFTER] = run.topic, run.start_id
    else:
        context.response = web.json_response(reply(number, error={"code": -32601, "message": "unknown method"}))


@before
def resume(context: RequestContext) -> None:
    if not context[SESSION]:
        raise web.HTTPBadRequest(text="Mcp-Session-Id is missing")
    name, _, after = (context.last_event_id or LISTENING).partition("_")
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise web.HTTPBadRequest(text="Last-Event-ID is not one of this server")
    context[TOPIC], context[AFTER] = f"mcp.{context[SESSION]}.{name}", after or None


@before
async def end(context: RequestContext) -> None:
    sessions.discard(context[SESSION])
    await hub.disconnect(f"session:{context[SESSION]}")
    context.response = web.Response(status=204)


app = web.Application(middlewares=[interceptor_middleware(check)])
setup(app, hub)
app.router.add_post("/mcp", as_handler(json_body(MESSAGE, check_message), post, messages))
app.router.add_get("/mcp", as_handler(resume, messages))
app.router.add_delete("/mcp", as_handler(end))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
