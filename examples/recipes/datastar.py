"""Elements that the server renders and Datastar patches into the page."""

from collections import Counter
from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import Event, Hub, RequestContext, interceptor_middleware, setup, topic_stream
from aiohttp_interceptors.ready import csrf

PAGE = Path(__file__).with_suffix(".html")
OPTIONS = ("tea", "coffee")
votes = Counter[str]()  # change: your data
hub = Hub()


def patch_elements(html: str, **options: str) -> Event:
    """Make the event that patches elements by their IDs; ``selector="#list", mode="append"`` patches elsewhere."""
    lines = [f"{name} {value}" for name, value in options.items()]
    lines += [f"elements {line}" for line in html.splitlines()]
    return Event("\n".join(lines), name="datastar-patch-elements")


def fragment(option: str) -> Event:
    return patch_elements(f'<p id="{option}">{option}: <b>{votes[option]}</b></p>')  # change: your template


async def vote(request: web.Request) -> web.Response:
    option = request.match_info["option"]
    votes[option] += 1  # first the state,
    await hub.publish("votes", fragment(option))  # then the event
    return web.Response(status=204)


def snapshot(context: RequestContext) -> list[Event]:
    return [fragment(option) for option in OPTIONS]


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application(middlewares=[interceptor_middleware(csrf())])
setup(app, hub)
app.router.add_get("/", page)
app.router.add_get("/votes", topic_stream(hub, "votes", snapshot=snapshot))
app.router.add_post(f"/votes/{{option:{'|'.join(OPTIONS)}}}", vote)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
