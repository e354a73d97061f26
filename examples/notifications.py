from aiohttp import web

from aiohttp_interceptors import Hub, as_handler, before, publish_handler, setup, start_topic_stream

hub = Hub()


@before
def authenticate(context):
    context["user"] = context.request.headers.get("X-User", "")  # in place of a session
    if not context["user"].isalnum():
        raise web.HTTPUnauthorized


mine = start_topic_stream(hub, lambda context: f"user.{context['user']}")
setup(app := web.Application(), hub)
app.router.add_get("/mine", as_handler(authenticate, mine))
app.router.add_post("/notify", as_handler(authenticate, publish_handler(hub)))
