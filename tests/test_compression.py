"""Compression of bodies without a network: what each stream is sent is decompressed and compared."""

from __future__ import annotations

import gc
import random
import struct
import tracemalloc
import weakref
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import Compression
from aiohttp_interceptors.compression import MIN_SHARED, Audience, ChannelEncoder, SharedEncoder, accepts_gzip

SMALL = Compression(window=512)
WORDS = [f"{number:x}".encode() * 3 for number in range(1000, 1400)]


def framed(body: bytes) -> bytes:
    return body


class Stream:
    """A stream of an audience, as its client decodes it."""

    def __init__(self, audience: Audience[Stream], settings: Compression = SMALL) -> None:
        self.encoder = SharedEncoder(framed, settings)
        self.audience = audience
        self.sent = b""
        self.decoded = b""
        self.bytes = 0
        self._decompressor = zlib.decompressobj(-15)

    def receive(self, payload: bytes) -> None:
        self.bytes += len(payload)
        self.decoded += self._decompressor.decompress(payload)

    def send_alone(self, frames: bytes) -> None:
        self.sent += frames
        self.receive(self.encoder(frames))

    def check(self) -> None:
        assert self.decoded == self.sent

    def finish(self) -> None:
        last_block, checksum, size = struct.unpack("<2sLL", self.encoder.finish())
        self._decompressor.decompress(last_block)
        assert self._decompressor.eof
        assert (checksum, size) == (zlib.crc32(self.sent), len(self.sent))


class Group:
    """An audience and the streams that follow it."""

    def __init__(self, settings: Compression = SMALL) -> None:
        self.audience: Audience[Stream] = Audience(framed, settings, lambda stream: stream.encoder)
        self.settings = settings
        self.streams: tuple[Stream, ...] = ()

    def join(self, count: int = 1) -> Stream:
        added = [Stream(self.audience, self.settings) for _ in range(count)]
        for stream in added:
            stream.encoder.enter(self.audience)
        self.streams += tuple(added)
        return added[0]

    def leave(self, stream: Stream) -> None:
        stream.encoder.leave()
        self.streams = tuple(each for each in self.streams if each is not stream)

    def send(self, frames: bytes) -> None:
        for stream in self.streams:
            stream.sent += frames
        received = []
        for payload, part in self.audience.encode(frames, self.streams):
            for stream in part:
                stream.receive(payload)
                received.append(stream)
        assert sorted(map(id, received)) == sorted(map(id, self.streams))
        for stream in self.streams:
            stream.check()


def text(generator: random.Random, size: int) -> bytes:
    """Make text whose words come again, at any distance."""
    words: list[bytes] = []
    while size > 0:
        words.append(generator.choice(WORDS))
        size -= len(words[-1])
    return b" ".join(words)


SIZES = st.sampled_from([0, 1, 20, 20, 100, 100, 400, 600, 3000])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), SIZES),
        st.tuples(st.just("send"), SIZES),
        st.tuples(st.just("alone"), st.sampled_from([0, 2, 100, 3000])),
        st.tuples(st.just("join"), st.sampled_from([1, 1, 1, MIN_SHARED])),
        st.tuples(st.just("leave"), st.just(0)),
        st.tuples(st.just("return"), st.just(0)),
    ),
    max_size=40,
)


@given(actions=ACTIONS, seed=st.integers(0, 1000), first=st.sampled_from([1, MIN_SHARED, MIN_SHARED]))
@settings(deadline=None, max_examples=300)
def test_each_stream_decodes_what_it_was_sent_whatever_the_others_do(actions, seed, first):
    generator = random.Random(seed)
    group = Group()
    group.join(first)
    away: list[Stream] = []
    for action, argument in actions:
        stream = generator.choice(group.streams) if group.streams else None
        if action == "join":
            group.join(argument)
        elif action == "send":
            group.send(text(generator, argument))
        elif action == "return" and away:
            back = away.pop(generator.randrange(len(away)))
            back.send_alone(text(generator, 50))
            back.encoder.enter(group.audience)
            group.streams += (back,)
        elif stream is not None and action == "alone":
            stream.send_alone(text(generator, argument))
        elif stream is not None and action == "leave":
            group.leave(stream)
            away.append(stream)
    for stream in [*group.streams, *away]:
        stream.check()
        stream.finish()


def test_a_stream_that_joins_costs_the_others_nothing():
    """The others are sent the same bytes as if it had not joined."""
    quiet, busy = Group(Compression()), Group(Compression())
    generator = random.Random(1)
    for group in (quiet, busy):
        group.join(200)
    first = quiet.streams[0], busy.streams[0]
    for number in range(100):
        frames = text(generator, 1000)
        quiet.send(frames)
        if number % 3 == 0:
            busy.join()
        before = first[1].bytes
        busy.send(frames)
    assert first[0].bytes == first[1].bytes
    assert busy.streams[-1].bytes > first[1].bytes - before  # without reference to what came before


def test_streams_that_joined_settle_once_all_were_sent_as_much_as_the_window_holds():
    group = Group(Compression(window=4096))
    generator = random.Random(2)
    group.join(40)
    group.send(text(generator, 5000))
    late = group.join()
    group.send(text(generator, 4200))
    frames = text(generator, 500)
    before = late.bytes, group.streams[0].bytes
    group.send(frames)
    assert late.bytes - before[0] == group.streams[0].bytes - before[1]


def test_many_streams_that_join_get_a_boundary_for_all_once_it_pays():
    group = Group(Compression())
    generator = random.Random(3)
    group.join(MIN_SHARED)
    group.send(text(generator, 30_000))
    group.join(200)
    payloads = []
    for _ in range(10):
        frames = text(generator, 200)
        payloads.append(len(group.audience.encode(frames, group.streams)))
    assert payloads[0] == 2
    assert payloads[-1] == 1


def test_a_small_audience_has_no_compressor():
    group = Group()
    group.join(MIN_SHARED - 1)
    group.send(b"data: 1\n\n")
    assert group.audience._main is None


def test_an_audience_that_becomes_small_and_large_again_begins_anew():
    group = Group(Compression())
    generator = random.Random(5)
    group.join(MIN_SHARED)
    group.send(text(generator, 2000))
    group.leave(group.streams[0])
    group.send(text(generator, 2000))
    group.join()
    for _ in range(3):
        group.send(text(generator, 2000))


def test_an_audience_that_forgets_refers_to_nothing_before():
    group = Group(Compression())
    frames = text(random.Random(6), 2000)
    group.join(MIN_SHARED)
    group.send(frames)
    before = group.streams[0].bytes
    group.audience.forget()
    group.send(frames)
    assert group.streams[0].bytes == 2 * before
    for stream in group.streams:
        stream.check()
        stream.finish()


def test_a_silent_audience_does_not_keep_the_streams_that_left():
    group = Group(Compression())
    group.join(MIN_SHARED)
    group.send(b"data: 1\n\n")
    group.join()
    group.send(b"data: 2\n\n")  # to settled and recent streams
    references = [weakref.ref(stream) for stream in group.streams]
    for stream in group.streams:
        stream.encoder.leave()
    del stream
    group.streams = ()
    gc.collect()
    assert not any(reference() for reference in references)


@pytest.fixture
def allocated():
    """Return a function that returns how many bytes are allocated, those of compressors included."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


COMPRESSOR = 128 * 1024  # bytes; less than one takes


@pytest.mark.parametrize("recent", [0, 3])
def test_an_idle_audience_keeps_no_compressor_once_each_stream_had_a_heartbeat(allocated, recent):
    group = Group(Compression())
    group.join(MIN_SHARED)
    group.send(text(random.Random(7), 2000))
    if recent:
        group.join(recent)
        group.send(b"data: to the recent ones, too\n\n")
    *most, last = group.streams
    last.send_alone(b":\n\n")  # makes the compressor for what is sent alone
    group.send(b"data: all\n\n")
    busy = allocated()
    for stream in most:
        stream.send_alone(b":\n\n")
    assert allocated() > busy - COMPRESSOR  # the last one can still refer to it
    last.send_alone(b":\n\n")
    assert allocated() < busy - COMPRESSOR
    for number in range(3):
        group.send(b"data: %d\n\n" % number)
    for stream in group.streams:
        stream.finish()


@pytest.mark.parametrize("frames", [b"data: 1\n\n", b""], ids=["events", "frames of no bytes"])
def test_an_audience_that_all_streams_leave_keeps_no_compressor(allocated, frames):
    """Frames of no bytes are none for the streams that entered."""
    group = Group(Compression())
    group.join(MIN_SHARED)
    group.send(frames)
    busy = allocated()
    for stream in group.streams:
        stream.encoder.leave()
    assert allocated() < busy - COMPRESSOR


def test_an_audience_without_its_last_stream_that_is_not_idle_keeps_no_compressor(allocated):
    group = Group(Compression())
    group.join(MIN_SHARED + 1)
    group.send(b"data: 1\n\n")
    *others, last = group.streams
    for stream in others:
        stream.send_alone(b":\n\n")
    busy = allocated()
    group.leave(last)
    assert allocated() < busy - COMPRESSOR
    group.send(b"data: 2\n\n")


def test_equal_options_share_and_others_do_not():
    assert SharedEncoder(framed, Compression()) == SharedEncoder(framed, Compression())
    assert hash(SharedEncoder(framed, Compression())) == hash(SharedEncoder(framed, Compression()))
    assert SharedEncoder(framed, Compression()) != SharedEncoder(framed, Compression(level=1))
    assert SharedEncoder(framed, Compression()) != SharedEncoder(bytes, Compression())
    assert SharedEncoder(framed, Compression()) != framed


@pytest.mark.parametrize("window", [512, 4096, 32768])
def test_a_stream_with_a_compressor_of_its_own(window):
    encoder = ChannelEncoder(framed, Compression(window=window))
    generator = random.Random(4)
    decompressor = zlib.decompressobj(-15)
    sent = b""
    for size in (10, 1000, 50_000, 0):
        frames = text(generator, size)
        sent += frames
        assert decompressor.decompress(encoder(frames)) == frames
    _, checksum, size = struct.unpack("<2sLL", encoder.finish())
    assert (checksum, size) == (zlib.crc32(sent), len(sent))


@pytest.mark.parametrize(
    ("accept_encoding", "accepted"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=0.0", False),
        ("br", False),
        ("identity", False),
        ("identity;q=0, gzip", True),
        ("identity;q=1, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=nonsense", False),
        ("gzip;level=9", True),
        ("gzip ; q=0.5", True),
        ("identity;q=0", False),
        ("gzip;q=nan", False),
        ("gzip;q=-1", False),
        ("," * 8000, False),
        ("gzip;q=1" + "=" * 8000, False),
    ],
)
def test_the_client_chooses(accept_encoding, accepted):
    assert accepts_gzip(accept_encoding) is accepted


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"level": 0}, ValueError),
        ({"level": 10}, ValueError),
        ({"level": 6.0}, TypeError),
        ({"window": 1000}, ValueError),
        ({"window": 256}, ValueError),
        ({"window": 65536}, ValueError),
        ({"window": "4k"}, TypeError),
    ],
)
def test_invalid_options_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        Compression(**options)
