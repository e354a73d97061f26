"""Who is here: a list of the users whose page is open, on all of their devices and all servers."""

from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import Hub, RequestContext, as_handler, before, interceptor_middleware, setup, topic_stream
from aiohttp_interceptors.ready import csrf

PAGE = Path(__file__).with_suffix(".html")
hub = Hub()  # change: a broker, for several processes


def user_of(context: RequestContext) -> str:  # change: the user of your session
    user = context.request.cookies.get("user", "")
    if not (user.isascii() and user.isalnum()):
        raise web.HTTPUnauthorized
    return user


async def enter(request: web.Request) -> web.Response:  # change: your login
    user = str((await request.post()).get("user", ""))
    if not (user.isascii() and user.isalnum()):
        raise web.HTTPBadRequest(text="a name has letters and digits")
    response = web.HTTPSeeOther("/")
    response.set_cookie("user", user, httponly=True, samesite="Lax", secure=True)
    raise response


@before
def members(context: RequestContext) -> None:
    user_of(context)
    context.response = web.json_response(sorted(hub.presence("room")))


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application(middlewares=[interceptor_middleware(csrf())])
setup(app, hub)
app.router.add_get("/", page)
app.router.add_post("/", enter)
app.router.add_get("/members", as_handler(members))
app.router.add_get("/room", topic_stream(hub, "room", identity=user_of, presence_event="who"))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
