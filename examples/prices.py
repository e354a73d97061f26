from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream


async def quote(request):
    symbol = request.match_info["symbol"]
    return web.json_response(await hub.publish("prices", {symbol: await request.text()}, key=symbol))


setup(app := web.Application(), hub := Hub(latest=10_000))
app.add_routes([web.get("/prices", topic_stream(hub, "prices", replay="latest")), web.put("/prices/{symbol}", quote)])
