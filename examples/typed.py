from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from aiohttp_interceptors import event_stream, openapi

Token = msgspec.defstruct("Token", [("text", str)])
Done = msgspec.defstruct("Done", [("tokens", int)])


@event_stream
async def answer(request) -> AsyncIterator[Token | Done]:
    yield Token("Hello")
    yield Done(1)


(app := web.Application()).router.add_get("/answer", answer)
description = openapi(answer)  # responses and schemas for the OpenAPI 3.2 document of the application
