from collections.abc import AsyncIterator

from aiohttp import web
from msgspec import defstruct

from aiohttp_interceptors import event_stream, openapi, setup

Token, Done = defstruct("Token", [("text", str)]), defstruct("Done", [("tokens", int)])


@event_stream
async def answer(request) -> AsyncIterator[Token | Done]:
    yield Token("Hello")
    yield Done(1)


setup(app := web.Application())
app.router.add_get("/answer", answer)
description = openapi(answer)  # responses and schemas for the OpenAPI 3.2 document of the application
