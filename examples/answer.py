from uuid import uuid4

from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream


async def answer(request):
    words = (await request.text()).split()
    run = await hub.run(f"answers.{uuid4().hex}", (word for word in words))  # in place of a model
    return web.json_response({"url": f"/{run.topic}?last_event_id={run.start_id}"})


setup(app := web.Application(), hub := Hub())
stream = topic_stream(hub, lambda context: context.request.match_info["topic"])
app.add_routes([web.post("/answers", answer), web.get(r"/{topic:answers\.[0-9a-f]+}", stream)])
