from aiohttp import web

from aiohttp_interceptors import event_stream, setup


@event_stream
async def chat(request):
    try:
        words = (await request.json())["prompt"].split()
    except (ValueError, LookupError, TypeError, AttributeError):
        raise web.HTTPBadRequest(text="send a JSON object with a prompt") from None
    for word in words:  # in place of a model
        yield word


setup(app := web.Application())
app.router.add_post("/chat", chat)
