"""Fragments of HTML that the server renders and htmx swaps into the page, with its extension for event streams."""

from collections import Counter
from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import Event, Hub, RequestContext, interceptor_middleware, setup, topic_stream
from aiohttp_interceptors.ready import csrf

PAGE = Path(__file__).with_suffix(".html")
OPTIONS = ("tea", "coffee")
votes = Counter[str]()  # change: your data
hub = Hub()


def fragment(option: str) -> Event:
    """Render the votes of an option. The element with ``sse-swap="tea"`` gets the event of that name."""
    return Event(f"{option}: <b>{votes[option]}</b>", name=option)  # change: your template, which escapes


async def vote(request: web.Request) -> web.Response:
    option = request.match_info["option"]
    votes[option] += 1  # first the state,
    await hub.publish("votes", fragment(option))  # then the event
    return web.Response(status=204)  # at which htmx swaps nothing


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
