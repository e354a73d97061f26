from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream


async def members(request):
    return web.json_response(sorted(hub.presence("room")))


setup(app := web.Application(), hub := Hub())
stream = topic_stream(hub, "room", identity=lambda context: context.request.query.get("user"), presence_event="who")
app.add_routes([web.get("/room", stream), web.get("/members", members)])
