from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream
from aiohttp_interceptors.brokers.sqlite import SqliteBroker

hub = Hub(SqliteBroker("events.sqlite3"))


async def say(request):
    return web.json_response(await hub.publish("news", await request.text()))


app = web.Application()
setup(app, hub)
app.add_routes([web.get("/news", topic_stream(hub, "news")), web.post("/news", say)])
