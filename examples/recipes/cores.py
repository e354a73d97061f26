"""A process for each core: workers that share a port and a history, and a supervisor that starts them again."""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import Hub, ready_handler, setup, topic_stream
from aiohttp_interceptors.brokers.sqlite import SqliteBroker

log = logging.getLogger("cores")
HOST, PORT = "127.0.0.1", 8080
hub = Hub(SqliteBroker(Path(__file__).with_name("events.sqlite3")))  # change: a RedisBroker, for several machines


async def say(request: web.Request) -> web.Response:  # change: who may publish
    return web.json_response(await hub.publish("news", await request.text()))


async def name_worker(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Worker"] = str(os.getpid())


async def wait_until_ready(_: web.Application) -> None:
    """Let a worker listen once it has read the history, so that its first streams miss nothing."""
    async with asyncio.timeout(60):
        while not hub.ready:
            await asyncio.sleep(0.01)


app = web.Application()
setup(app, hub)
app.on_startup.append(wait_until_ready)
app.on_response_prepare.append(name_worker)
app.router.add_get("/news", topic_stream(hub, "news", retry=1000))
app.router.add_post("/news", say)
app.router.add_get("/ready", ready_handler(hub))


async def supervise(workers: int) -> None:
    """Run the workers until SIGTERM, Ctrl-C, or the end of the terminal."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, PORT))  # fails if the workers of another supervisor have the port
    stop = asyncio.Event()
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signals.append(signal.SIGHUP)  # the workers do not get that of the terminal either
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(keep_running(stop))


async def keep_running(stop: asyncio.Event) -> None:
    """Start a worker, and another one whenever it has ended."""
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        # In a session of its own it does not get Ctrl-C too: a second signal may cut off its streams.
        worker = await asyncio.create_subprocess_exec(sys.executable, __file__, "worker", start_new_session=True)
        ended = asyncio.create_task(worker.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            with suppress(ProcessLookupError):  # it has just ended
                worker.terminate()
            await ended
        else:
            log.error("worker %d ended with status %d", worker.pid, worker.returncode)
            await asyncio.wait([stopping], timeout=1)  # one that cannot start does not occupy a core


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        web.run_app(app, host=HOST, port=PORT, reuse_port=True, backlog=4096)
    else:
        asyncio.run(supervise(int(sys.argv[1]) if sys.argv[1:] else os.cpu_count() or 1))
