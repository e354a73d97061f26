from clock import app

from aiohttp_interceptors.testing import open_stream


async def test_the_clock_ticks(aiohttp_client):
    async with open_stream(await aiohttp_client(app), "/clock") as stream:
        first, second = await stream.next(), await stream.next()
    assert first != second
