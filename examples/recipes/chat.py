"""A chat answer, token by token over POST, which goes on while its reader is away."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from aiohttp import web

from aiohttp_interceptors import (
    ContextKey,
    Event,
    Hub,
    RequestContext,
    TooManyRuns,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    start_topic_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import json_body, problem_details


@dataclass
class Question:
    prompt: str


PAGE = Path(__file__).with_suffix(".html")
QUESTION = ContextKey[Question]("question")
TOPIC = ContextKey[str]("topic")
# A topic holds the whole answer: more tokens than this are announced as a gap.
hub = Hub(SqliteBroker("chat.sqlite3", synchronous="NORMAL"), history=10_000, max_runs=100)


async def answer(prompt: str) -> AsyncGenerator[Event, None]:  # change: your model
    for word in prompt.split():
        await asyncio.sleep(0.2)
        if word == "fail":
            raise RuntimeError("the model has failed")
        yield Event.json({"text": f"{word} "}, name="token")


@before
async def ask(context: RequestContext) -> None:
    run = await hub.run(
        f"answers.{uuid4().hex}",
        answer(context[QUESTION].prompt),
        timeout=120,
        error_event=Event.json({"message": "The model does not answer, please try again."}, name="failed"),
    )
    context[TOPIC] = run.topic
    context.response_headers["Content-Location"] = f"/{run.topic}?last_event_id={run.start_id}"


def topic_of(context: RequestContext) -> str:
    return context.request.match_info["topic"]  # change: whose answer is it?


async def cancel(request: web.Request) -> web.Response:
    run = hub.find_run(request.match_info["topic"])
    if run is None:
        raise web.HTTPNotFound
    await run.cancel()
    return web.Response(status=204)


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application(middlewares=[interceptor_middleware(problem_details({TooManyRuns: 503}))])
setup(app, hub)
# The stream of the POST starts with what the run has published until it is open.
first = start_topic_stream(hub, lambda context: context[TOPIC], replay=10_000)
app.router.add_get("/", page)
app.router.add_post("/answers", as_handler(json_body(QUESTION, Question, max_size=10_000), ask, first))
app.router.add_get(r"/{topic:answers\.[0-9a-f]+}", topic_stream(hub, topic_of))
app.router.add_delete(r"/{topic:answers\.[0-9a-f]+}", cancel)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
