"""Notifications of a logged-in user, for a page of another origin, until the logout on any node."""

import sqlite3
from hashlib import sha256
from secrets import token_urlsafe

from aiohttp import web

from aiohttp_interceptors import (
    ContextKey,
    Event,
    Hub,
    RequestContext,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    start_topic_stream,
)
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import cors, csrf

ORIGINS = ["http://localhost:3000"]  # change: where your pages are
USER, SESSION = ContextKey[str]("user"), ContextKey[str]("session")
sessions = sqlite3.connect("sessions.sqlite3", isolation_level=None)  # change: your sessions, which all nodes share
sessions.execute("CREATE TABLE IF NOT EXISTS session (id TEXT PRIMARY KEY, user TEXT NOT NULL)")
hub = Hub(SqliteBroker("notifications.sqlite3"))


def owner_of(session: str) -> str:
    # A hash: the broker stores owners, and the inspector shows them.
    return f"session:{sha256(session.encode()).hexdigest()}"


@before
def authenticate(context: RequestContext) -> None:
    session = context.request.cookies.get("session", "")
    row = sessions.execute("SELECT user FROM session WHERE id = ?", [session]).fetchone()
    if row is None:
        raise web.HTTPUnauthorized
    context[USER], context[SESSION] = row[0], session


async def end_session(session: str) -> None:
    sessions.execute("DELETE FROM session WHERE id = ?", [session])  # first, so that no stream opens in between
    await hub.disconnect(owner_of(session), Event("signed out", "logout"))


async def login(request: web.Request) -> web.Response:
    user = str((await request.post()).get("user", ""))
    if not (user.isascii() and user.isalnum()):  # change: check the password
        raise web.HTTPForbidden
    if previous := request.cookies.get("session"):  # that of the last user, whose other tabs are open
        await end_session(previous)
    session = token_urlsafe()
    sessions.execute("INSERT INTO session VALUES (?, ?)", [session, user])
    response = web.Response(status=204)
    response.set_cookie("session", session, httponly=True, samesite="Lax", secure=True)
    return response


@before
async def logout(context: RequestContext) -> None:
    await end_session(context[SESSION])
    context.response = web.Response(status=204)
    context.response.del_cookie("session")


async def notify(request: web.Request) -> web.Response:  # change: what happens in your application
    user = request.match_info["user"]
    await hub.publish(f"users.{user}", Event.json({"text": await request.text()}, name="notification"))
    return web.Response(status=204)


async def close(app: web.Application) -> None:
    sessions.close()


stream = start_topic_stream(
    hub,
    lambda context: f"users.{context[USER]}",
    owner=lambda context: [owner_of(context[SESSION]), f"user:{context[USER]}"],
    replay=10,
)
app = web.Application()
setup(app, hub)
app.on_cleanup.append(close)
app.middlewares.append(interceptor_middleware(cors(ORIGINS, credentials=True), csrf(origins=ORIGINS)))
app.router.add_post("/login", login)
app.router.add_post("/logout", as_handler(authenticate, logout))
app.router.add_post(r"/users/{user:[A-Za-z0-9]+}", as_handler(authenticate, notify))
app.router.add_get("/notifications", as_handler(authenticate, stream))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
