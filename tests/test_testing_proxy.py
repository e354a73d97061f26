"""``TcpProxy``: a network that is slow, silent or broken."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.testing import TcpProxy
from tests.waiting import until, within


@pytest.fixture
async def proxy():
    """A proxy in front of an echo server."""

    async def echo(reader, writer):
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with TcpProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def send(proxy, data: bytes = b"hello"):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(data)
    return reader, writer


async def test_it_forwards_data_and_the_end(proxy):
    reader, writer = await send(proxy, b"x" * 300_000)
    writer.write_eof()
    assert await within(reader.read()) == b"x" * 300_000
    writer.close()
    await until(lambda: proxy.connections == 0)


async def test_cut_resets_open_and_new_connections(proxy):
    reader, writer = await send(proxy)
    assert await within(reader.readexactly(5)) == b"hello"
    assert proxy.connections == 1
    proxy.cut()
    with pytest.raises(ConnectionError):
        await within(reader.readexactly(1))
    writer.close()
    again, other = await send(proxy)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await within(again.readexactly(1))
    other.close()
    proxy.restore()
    reader, writer = await send(proxy)
    assert await within(reader.readexactly(5)) == b"hello"
    writer.close()


async def test_stall_holds_data_until_restore(proxy):
    reader, writer = await send(proxy)
    assert await within(reader.readexactly(5)) == b"hello"
    proxy.stall()
    writer.write(b"again")
    new, other = await send(proxy)
    for one in reader, new:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.readexactly(1), 0.05)
    proxy.restore()
    assert await within(reader.readexactly(5)) == b"again"
    assert await within(new.readexactly(5)) == b"hello"
    writer.close()
    other.close()


async def test_rate_and_delay_slow_data_down(proxy):
    loop = asyncio.get_running_loop()
    proxy.rate, proxy.delay = 100_000, 0.01
    began = loop.time()
    reader, writer = await send(proxy, b"x" * 10_000)
    assert await within(reader.readexactly(10_000)) == b"x" * 10_000
    assert loop.time() - began >= 0.1
    writer.close()


async def test_cut_after_resets_a_connection_after_so_many_bytes(proxy):
    proxy.cut_after = 3
    reader, writer = await send(proxy)
    assert await within(reader.readexactly(3)) == b"hel"
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await within(reader.readexactly(1))
    writer.close()


async def test_a_server_that_does_not_listen_resets_connections():
    async with TcpProxy("127.0.0.1", 1) as proxy:
        reader, writer = await send(proxy)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await within(reader.readexactly(1))
        writer.close()
