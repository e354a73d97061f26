import asyncio
import time

from aiohttp import web

from aiohttp_interceptors import event_stream, setup


@event_stream
async def clock(request):
    while True:
        yield time.strftime("%X")
        await asyncio.sleep(1)


setup(app := web.Application())
app.router.add_get("/clock", clock)
