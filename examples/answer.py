from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream


async def answer(request):
    words = (await request.text()).split()
    run = await hub.run(f"answer.{request.match_info['id']}", (word for word in words))  # in place of a model
    return web.json_response({"topic": run.topic})


setup(app := web.Application(), hub := Hub())
stream = topic_stream(hub, lambda context: f"answer.{context.request.match_info['id']}", replay=1000)
app.add_routes([web.post("/answers/{id}", answer), web.get("/answers/{id}", stream)])
