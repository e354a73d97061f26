from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream

hub = Hub(history=100)


async def say(request):
    return web.json_response(await hub.publish("chat", await request.text()))


app = web.Application()
setup(app, hub, max_streams=1000)
app.router.add_get("/chat", topic_stream(hub, "chat", replay=10))
app.router.add_post("/chat", say)
