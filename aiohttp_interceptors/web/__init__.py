"""aiohttp: the edge of the library, and its only room that imports aiohttp and aiohttp_sse."""
