"""Random programs: a compressed stream receives what its uncompressed twin receives, whatever the other streams do."""

from __future__ import annotations

import asyncio
import random
import socket
import zlib
from contextlib import suppress

import pytest
from aiohttp import web

from aiohttp_interceptors import Compression, Decoder, Event, Hub, as_handler, setup, start_topic_stream
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS
TOPICS = ["a", "b", "c"]
WORDS = [f"word-{number}" for number in range(300)]
GZIP = "Accept-Encoding: gzip\n"


class Client:
    """A client that reads while it may, and keeps the events."""

    def __init__(self, reader, writer, *, compressed):
        self.reading = asyncio.Event()
        self.reading.set()
        self.events: list[Event] = []
        self.decompressor = zlib.decompressobj(31) if compressed else None
        self.writer = writer
        self.task = asyncio.create_task(self._read(reader))

    async def _read(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"Content-Encoding: gzip" in head) == (self.decompressor is not None)
        decoder = Decoder()
        while data := await reader.read(4096):
            if self.decompressor is not None:
                data = self.decompressor.decompress(data)
            self.events += [event for event in decoder.feed(data) if event.data is not None]
            await self.reading.wait()

    async def close(self):
        self.task.cancel()
        await asyncio.wait([self.task])
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Program:
    """Pairs of streams of two audiences, a large and a small one, of which one stream is compressed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.hub = Hub(history=10_000, history_bytes=None)
        self.subscribers = {}  # by the number of the pair
        self.pairs: dict[int, list[Client]] = {}
        self.ids = []
        self.number = 0

    def make_app(self):
        app = web.Application()
        setup(app, self.hub)
        for audience, topics in ("large", "a"), ("small", ["b", "c"]):
            for path, compress in ("plain", False), ("gzip", Compression(window=4096)):
                stream = start_topic_stream(
                    self.hub, topics, compress=compress, heartbeat=0.2, replay=2, stream_ready=self.note
                )
                app.router.add_get(f"/{audience}/{path}", as_handler(stream))
        return app

    def note(self, subscriber, context):
        self.subscribers.setdefault(int(context.request.query["pair"]), []).append(subscriber)

    async def join(self, port, audience=None):
        audience = audience or self.random.choice(["large", "small"])
        self.number += 1
        number, pair = self.number, []
        resume = f"Last-Event-ID: {self.random.choice(self.ids)}\n" if self.ids and self.random.random() < 0.5 else ""
        for path in "plain", "gzip":
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a client that does not read is soon paused
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
            request = f"GET /{audience}/{path}?pair={number} HTTP/1.0\n{GZIP}{resume}\n"
            writer.write(request.replace("\n", "\r\n").encode())
            pair.append(Client(reader, writer, compressed=path == "gzip"))
        await until(lambda: len(self.subscribers.get(number, ())) == len(pair))
        self.pairs[number] = pair

    async def publish(self, topic=None):
        text = " ".join(self.random.choices(WORDS, k=self.random.choice([1, 10, 100, 300])))
        if self.random.random() < 0.3:
            text += self.random.randbytes(4000).hex()  # so that a client that does not read is paused
        topic = topic or self.random.choice(TOPICS)
        self.ids.append(await self.hub.publish(topic, f"{topic} {text}"))

    def stall(self):
        for client in self.random.choice(list(self.pairs.values())):
            client.reading.clear()

    def resume(self):
        for pair in self.pairs.values():
            for client in pair:
                client.reading.set()

    async def change_topics(self):
        """Change the topics of a pair that has received everything, because what it has not is lost with a topic."""
        number, pair = self.random.choice(list(self.pairs.items()))
        first, second = self.subscribers[number]
        last = await self.hub.publish(min(first.topics), "marker")
        for client in pair:
            client.reading.set()
        await until(lambda: all(client.events and client.events[-1].id == last for client in pair))
        topic = self.random.choice(TOPICS)
        for subscriber in first, second:
            if topic not in subscriber.topics:
                subscriber.add(topic)
            elif len(subscriber.topics) > 1:
                subscriber.remove(topic)

    async def leave(self):
        for client in self.pairs.pop(self.random.choice(list(self.pairs))):
            await client.close()

    async def step(self, port):
        action = self.random.random()
        if action < 0.6:
            await self.publish()
        elif action < 0.7:
            await self.join(port)
        elif action < 0.75:
            await self.leave()
        elif action < 0.85:
            self.stall()
        elif action < 0.9:
            self.resume()
        else:
            await self.change_topics()
        if self.random.random() < 0.5:  # otherwise, the next record is in the same flush
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(3))
async def test_a_compressed_stream_receives_what_its_twin_receives(serve, seed):
    program = Program(seed)
    port = (await serve(program.make_app())).port
    try:
        for audience, count in ("large", 18), ("small", 4):
            for _ in range(count):
                await program.join(port, audience)
        for _ in range(250):
            await program.step(port)
        program.resume()
        for topic in TOPICS:
            await program.publish(topic)
            await program.hub.finish(topic)
        for plain, compressed in program.pairs.values():
            await within(asyncio.gather(plain.task, compressed.task))
            assert compressed.events == plain.events
            assert compressed.decompressor.eof  # with the right checksum and size
    finally:
        while program.pairs:
            await program.leave()
