"""Notifications for a page that authenticates with a Bearer token, which an ``EventSource`` cannot send."""

import time

import jwt
from aiohttp import web

from aiohttp_interceptors import (
    Event,
    Hub,
    RequestContext,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    topic_stream,
)
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import CLAIMS, TICKET, Tickets, bearer, cors, jwt_verifier

ORIGINS = ["http://localhost:3000"]  # change: where your pages are
KEY = "change this: 32 bytes or more, the same on all nodes"  # change: from your configuration
ISSUER, AUDIENCE = "https://login.example.com", "https://api.example.com"
hub = Hub(SqliteBroker("notifications.sqlite3"))
tickets = Tickets(KEY, hub)
authenticate = bearer(jwt_verifier(KEY, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER))


async def login(request: web.Request) -> web.Response:  # change: your identity provider does this
    user = str((await request.post()).get("user", ""))
    if not (user.isascii() and user.isalnum()):
        raise web.HTTPForbidden
    claims = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600}
    return web.json_response({"token": jwt.encode(claims, KEY, algorithm="HS256")})


@before
def ticket(context: RequestContext) -> None:
    user, end = context[CLAIMS]["sub"], float(context[CLAIMS]["exp"])
    value = tickets.issue(f"user:{user}", f"users.{user}", expires_at=end)
    context.response = web.json_response({"ticket": value}, headers={"Cache-Control": "no-store"})


@before
async def logout(context: RequestContext) -> None:  # change: revoke the token as well
    await hub.disconnect(f"user:{context[CLAIMS]['sub']}", Event("signed out", "logout"))
    context.response = web.Response(status=204)


async def notify(request: web.Request) -> web.Response:  # change: what happens in your application
    user = request.match_info["user"]
    await hub.publish(f"users.{user}", Event.json({"text": await request.text()}, name="notification"))
    return web.Response(status=204)


stream = topic_stream(
    hub,
    lambda context: context[TICKET].topics,
    owner=lambda context: context[TICKET].owner,
    expires_at=lambda context: context[TICKET].expires_at,
)
app = web.Application()
setup(app, hub)
app.middlewares.append(interceptor_middleware(cors(ORIGINS)))
app.router.add_post("/login", login)
app.router.add_post("/ticket", as_handler(authenticate, ticket))
app.router.add_post("/logout", as_handler(authenticate, logout))
app.router.add_post(r"/users/{user:[A-Za-z0-9]+}", as_handler(authenticate, notify))
app.router.add_get("/notifications", as_handler(tickets.redeem, stream))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
