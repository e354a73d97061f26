"""A job whose progress survives a reload of the page and a restart of the server."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

from aiohttp import web

from aiohttp_interceptors import Event, Hub, RequestContext, interceptor_middleware, setup, topic_stream
from aiohttp_interceptors.ready import csrf

STEPS = 100
PAGE = Path(__file__).with_suffix(".html")
database = sqlite3.connect("progress.sqlite3", isolation_level=None)  # change: your database
database.execute("CREATE TABLE IF NOT EXISTS job (id TEXT PRIMARY KEY, done INTEGER NOT NULL, state TEXT NOT NULL)")
hub = Hub()
tasks: set[asyncio.Task[None]] = set()


async def step(job: str, number: int) -> None:  # change: the work; the step in which a server dies runs again
    await asyncio.sleep(0.1)


def progress(job: str) -> Event:
    done, state = database.execute("SELECT done, state FROM job WHERE id = ?", [job]).fetchone()
    return Event.json({"done": done, "steps": STEPS, "state": state}, name="progress")


async def work(job: str, done: int) -> None:
    state = "failed"
    try:
        for number in range(done + 1, STEPS + 1):
            await step(job, number)
            database.execute("UPDATE job SET done = ? WHERE id = ?", [number, job])  # first the state,
            await hub.publish(f"jobs.{job}", progress(job))  # then the event
        state = "finished"
    except asyncio.CancelledError:  # the server stops, and the next one continues
        state = "running"
        raise
    finally:
        database.execute("UPDATE job SET state = ? WHERE id = ?", [state, job])
        if state != "running":
            await hub.finish(f"jobs.{job}", progress(job))


def start(job: str, done: int) -> None:
    task = asyncio.create_task(work(job, done))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def jobs(app: web.Application) -> AsyncIterator[None]:
    for job, done in database.execute("SELECT id, done FROM job WHERE state = 'running'").fetchall():
        start(job, done)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    database.close()


async def create(request: web.Request) -> web.Response:
    job = uuid4().hex
    database.execute("INSERT INTO job VALUES (?, 0, 'running')", [job])
    start(job, 0)
    raise web.HTTPSeeOther(f"/jobs/{job}")


def topic_of(context: RequestContext) -> str:
    job = context.request.match_info["job"]
    if database.execute("SELECT 1 FROM job WHERE id = ?", [job]).fetchone() is None:
        raise web.HTTPNotFound
    return f"jobs.{job}"


def snapshot(context: RequestContext) -> list[Event]:
    return [progress(context.request.match_info["job"])]


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application(middlewares=[interceptor_middleware(csrf())])
setup(app, hub)
app.cleanup_ctx.append(jobs)
app.router.add_get("/", page)
app.router.add_post("/jobs", create)
app.router.add_get("/jobs/{job}", page)
app.router.add_get("/jobs/{job}/events", topic_stream(hub, topic_of, snapshot=snapshot))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
