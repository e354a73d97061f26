"""An application with the packages that applications use: sessions, permissions, CORS, templates, jobs, proxies.

The order of its middlewares is that of ``docs/packages.md``: outermost is what gives the request its address, then the
session, then the interceptors.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp_cors
import aiohttp_jinja2
import aiohttp_remotes
import aiohttp_security
import aiohttp_session
import aiojobs.aiohttp
import jinja2
import pytest
from aiohttp import web
from aiohttp_security import AbstractAuthorizationPolicy, SessionIdentityPolicy
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiohttp_interceptors import (
    ContextKey,
    Drain,
    Event,
    Hub,
    RequestContext,
    after,
    as_handler,
    before,
    event_stream,
    intercept,
    interceptor_middleware,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.loops import BOTH_LOOPS

ORIGIN = "https://pages.example"
PAGE = ContextKey[dict]("page")
USER = ContextKey[str]("user")
SENT = ContextKey[dict]("the session as it was sent")
HEARTBEAT = 5.0
PAGES = {"page.html": "<p>{{ user or 'a guest' }} at {{ place }}</p>"}
PERMISSIONS = {"ada": {"read"}, "grace": set()}
STORAGES = {
    "simple": aiohttp_session.SimpleCookieStorage,
    "encrypted": lambda: EncryptedCookieStorage(Fernet(Fernet.generate_key())),
}
MARKS = [
    *BOTH_LOOPS,
    # aiohttp-session and aiohttp-jinja2 have keys that are strings.
    pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey"),
    pytest.mark.filterwarnings("ignore:It is recommended to use web.AppKey"),
]
log = logging.getLogger(__name__)


class Broken(Exception):
    """Raised by a producer after the first event."""


class Permissions(AbstractAuthorizationPolicy):
    """Users and what they may do."""

    async def permits(self, identity, permission, context=None) -> bool:
        return permission in PERMISSIONS.get(identity, ())

    async def authorized_userid(self, identity) -> str | None:
        return identity if identity in PERMISSIONS else None


# Sessions of streams, as docs/packages.md has them.


async def save_session(request: web.Request, response: web.StreamResponse) -> None:
    """Save the session of a streaming response before its headers are sent."""
    session = request.get(aiohttp_session.SESSION_KEY)
    if session is None or isinstance(response, web.Response):
        return  # the middleware of aiohttp-session saves that of a plain response
    if not (session.new and session.empty):
        await request[aiohttp_session.STORAGE_KEY].save_session(request, response, session)
    if (context := RequestContext.find(request)) is not None:
        context[SENT] = dict(session)


@after
def report_unsaved_session(context) -> None:
    """Log a session that changed after the headers of its stream were sent."""
    session = context.request.get(aiohttp_session.SESSION_KEY)
    if SENT in context and dict(session) != context[SENT]:
        log.error("the session of %s changed after its headers were sent", context.request.path)


# Stages.


@before
async def signed_in(context) -> None:
    await aiohttp_security.check_authorized(context.request)


@before
async def may_read(context) -> None:
    await aiohttp_security.check_permission(context.request, "read")
    context[USER] = await aiohttp_security.check_authorized(context.request)


@after
def rendered(context) -> None:
    """Answer with the template, for a handler that leaves the values of a page."""
    if (values := context.get(PAGE)) is not None:
        context.response = aiohttp_jinja2.render_template("page.html", context.request, values)


@after
def polite(context) -> None:
    """Try to change a cookie when a stream has ended."""
    if context.request.path == "/late-cookie":
        context.response.set_cookie("late", "1")


# Handlers.


@before
async def log_in(context) -> None:
    """Remember the user, and let a leave stage render the page."""
    user = context.request.query["user"]
    await aiohttp_security.remember(context.request, web.Response(), user)
    context[PAGE] = {"user": user, "place": "login"}
    context.response = web.Response()


@aiohttp_jinja2.template("page.html")
async def page(request: web.Request):
    return {"user": await aiohttp_security.authorized_userid(request), "place": "page"}


@event_stream
async def visits(request: web.Request):
    session = await aiohttp_session.get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    yield str(session["visits"])


@event_stream
async def late(request: web.Request):
    session = await aiohttp_session.get_session(request)
    session["early"] = 1
    yield "x"
    session["late"] = 1


@event_stream
async def broken(request: web.Request):
    yield "x"
    raise Broken


@event_stream
async def address(request: web.Request):
    yield f"{request.remote} {request.scheme} {request.host}"
    await asyncio.Event().wait()


async def refused_by_handler(channel, context) -> None:
    await channel.put("never")


async def one_event(channel, context) -> None:
    await channel.put("x")
    channel.close()


@before
async def no_stream(context) -> None:
    raise web.HTTPConflict(text="not now")


async def log_out(request: web.Request) -> web.Response:
    """Forget the user first: a client may come back before the next line runs."""
    response, user = web.Response(), await aiohttp_security.check_authorized(request)
    await aiohttp_security.forget(request, response)
    await request.config_dict[SITE].hub.disconnect(f"user:{user}", Event("signed out", "logout"))
    return response


async def say(request: web.Request) -> web.Response:
    """Publish in a job that goes on after the response, when the test allows it."""
    text, site = await request.text(), request.config_dict[SITE]

    async def publish() -> None:
        await site.may_publish.wait()
        try:
            site.outcomes.append(await site.hub.publish(f"rooms.{request.match_info['room']}", text))
        except RuntimeError as error:
            site.outcomes.append(error)

    await aiojobs.aiohttp.spawn(request, publish())
    return web.Response(status=202)


@intercept(may_read)
@aiojobs.aiohttp.atomic
async def atomic(request: web.Request) -> web.Response:
    """Go on to the end even if the client leaves."""
    site = request.config_dict[SITE]
    site.atomic_request = request
    site.outcomes.append("begun")
    await site.may_publish.wait()
    site.outcomes.append("done")
    return web.Response()


class Site:
    """The application, and what its tests look at."""

    def __init__(
        self,
        storage: str = "simple",
        *,
        application=web.Application,
        observer=None,
        stages=(),
        jobs_first: bool = False,
        **limits,
    ) -> None:
        self.hub = Hub(broker=MemoryBroker(MemoryLog()))
        self.facts: list = []
        self.may_publish = asyncio.Event()
        self.cleaning_up = asyncio.Event()
        self.outcomes: list[object] = []
        self.app: web.Application = application()
        self._storage = STORAGES[storage]()
        self._stages = stages
        if jobs_first:
            aiojobs.aiohttp.setup(self.app, wait_timeout=1)
        self._jobs_first = jobs_first
        observers = [self.facts.append, *([observer] if observer else [])]
        setup(self.app, self.hub, drain=Drain(grace=0.5, timeout=0.5), observer=observers, **limits)
        self.app[SITE] = self

    async def install(self) -> Site:
        """Add the packages and the routes."""
        app = self.app
        await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
        aiohttp_session.setup(app, self._storage)
        app.on_response_prepare.append(save_session)
        aiohttp_security.setup(app, SessionIdentityPolicy(), Permissions())
        aiohttp_jinja2.setup(app, loader=jinja2.DictLoader(PAGES))
        if not self._jobs_first:
            aiojobs.aiohttp.setup(app, wait_timeout=1)  # after setup, whose Hub is then closed later
        app.cleanup_ctx.append(self._note_cleanup)
        app.middlewares.append(interceptor_middleware(*self._stages, report_unsaved_session, polite, rendered))
        self.routes(app)
        options = aiohttp_cors.ResourceOptions(allow_credentials=True, expose_headers="*", allow_headers="*")
        cors = aiohttp_cors.setup(app, defaults={ORIGIN: options})
        for route in list(app.router.routes()):
            cors.add(route)
        return self

    async def _note_cleanup(self, app: web.Application):
        yield
        self.cleaning_up.set()  # first: the last one that was added is cleaned up first

    def routes(self, app: web.Application) -> None:
        read = topic_stream(
            self.hub,
            lambda context: f"rooms.{context.request.match_info['room']}",
            owner=lambda context: f"user:{context[USER]}",
            heartbeat=HEARTBEAT,
        )
        app.router.add_post("/logout", log_out)
        app.router.add_post("/atomic", atomic)
        app.router.add_get("/login", as_handler(log_in))
        app.router.add_get("/", page)
        app.router.add_get("/visits", intercept(signed_in)(visits))
        app.router.add_get("/late", late)
        app.router.add_get("/late-cookie", as_handler(start_event_stream(one_event)))
        app.router.add_get("/broken", broken)
        app.router.add_get("/address", address)
        app.router.add_get("/conflict", as_handler(no_stream, start_event_stream(refused_by_handler)))
        room = app.router.add_resource("/rooms/{room}")
        room.add_route("GET", intercept(may_read)(read))
        room.add_route("POST", intercept(may_read)(say))


SITE = web.AppKey("site", Site)
