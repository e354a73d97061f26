"""Two runs: a job with a progress, and an answer token by token. They go on when their page is closed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from secrets import token_hex

from aiohttp import web

from aiohttp_interceptors import Event, RequestContext

from .rooms import HUB

__all__ = ["ID", "MAX_RUNS", "RUN_INTERVAL", "cancel", "run_topic", "start"]

RUN_INTERVAL = web.AppKey("run_interval", float)  # seconds between two events of a run
ID = "[.][0-9a-f]{32}"  # the end of a topic; it cannot be guessed
MAX_RUNS = 100  # of each server
TIMEOUT = 120.0  # seconds
STEPS = 100
ANSWER = Path(__file__).parent / "static" / "answer.txt"
TOKENS = re.findall(
    r"\S+\s*", (Path(__file__).parent / "static" / "answer.txt").read_text("utf-8")
)  # in place of a model


async def _job(interval: float) -> AsyncGenerator[object, None]:
    for step in range(STEPS + 1):
        yield Event.json({"step": step, "of": STEPS}, "progress")
        await asyncio.sleep(interval)


async def _answer(begin: int, interval: float) -> AsyncGenerator[object, None]:
    yield Event.json({"text": "".join(TOKENS[:begin]), "number": begin, "of": len(TOKENS)}, "begin")
    for number, token in enumerate(TOKENS[begin:], begin + 1):
        await asyncio.sleep(interval)
        yield Event.json({"text": token, "number": number, "of": len(TOKENS)}, "token")


async def start(request: web.Request) -> web.Response:
    """Start a run, and return its topic and the ID before its first event. ``after`` is the number of known tokens."""
    kind, after, interval = request.match_info["kind"], request.query.get("after", "0"), request.app[RUN_INTERVAL]
    if not re.fullmatch("[0-9]{1,4}", after) or int(after) > len(TOKENS):
        raise web.HTTPBadRequest(text=f"after is a number of tokens from 0 to {len(TOKENS)}\n")
    events = _job(interval) if kind == "jobs" else _answer(int(after), interval)
    try:
        run = await request.app[HUB].run(f"{kind}.{token_hex(16)}", events, timeout=TIMEOUT)
    except RuntimeError as error:  # a BrokerError, TooManyRuns, or the process is stopping
        raise web.HTTPServiceUnavailable(text="the server cannot start it at the moment, try again\n") from error
    return web.json_response({"topic": run.topic, "start": run.start_id})


def run_topic(context: RequestContext) -> str:
    """Return the topic that a request names, and refuse one without a run, whose stream would wait for ever."""
    topic, hub = context.request.match_info["topic"], context.request.app[HUB]
    if hub.ready and hub.find_run(topic) is None:  # a Hub that is not ready may not know the run yet
        raise web.HTTPNotFound(text="there is no such run; it is forgotten an hour after its end\n")
    return topic


async def cancel(request: web.Request) -> web.Response:
    """End a run, on whichever server it is."""
    run = request.app[HUB].find_run(request.match_info["topic"])
    if run is None:
        raise web.HTTPNotFound(text="there is no such run\n")
    try:
        await run.cancel()
    except RuntimeError as error:  # a BrokerError
        raise web.HTTPServiceUnavailable(text="the server of the run cannot be reached, try again\n") from error
    return web.Response(status=204)
