from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason
from aiohttp_interceptors.web.transport import MAX_PIPELINED_BYTES, InterposedProtocol


class Pipe(asyncio.Transport):
    """A transport that notes what is asked of it."""

    def __init__(self, protocol: asyncio.BaseProtocol, *, reading: bool = True) -> None:
        super().__init__()
        self.protocol = protocol
        self.reading = reading
        self.closing = False

    def get_protocol(self):
        return self.protocol

    def set_protocol(self, protocol):
        self.protocol = protocol

    def is_reading(self):
        return self.reading

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.closing

    def abort(self):
        self.closing = True


class Noted(asyncio.Protocol):
    """Notes what it is told, as aiohttp's protocol and as the stream's connection."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def data_received(self, data):
        self.told.append(("data", data))

    def eof_received(self):
        self.told.append(("eof",))

    def connection_lost(self, exc):
        self.told.append(("lost", exc))

    def pause_writing(self):
        self.told.append(("pause",))

    def resume_writing(self):
        self.told.append(("resume",))

    def lose(self, reason):
        self.told.append(("lose", reason))

    pause, resume = pause_writing, resume_writing


@pytest.fixture
def wrapped() -> Noted:
    return Noted()


@pytest.fixture
def connection() -> Noted:
    return Noted()


def test_what_comes_while_the_stream_is_open_is_handed_on_after_it(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    assert transport.get_protocol() is watcher
    watcher.data_received(b"GET / ")
    watcher.data_received(b"HTTP/1.1")
    assert wrapped.told == []
    watcher.detach()
    assert wrapped.told == [("data", b"GET / HTTP/1.1")]
    assert transport.get_protocol() is wrapped


@pytest.mark.parametrize("reading", [True, False])
def test_it_reads_in_any_case_and_leaves_the_transport_as_aiohttp_had_it(wrapped, connection, reading):
    transport = Pipe(wrapped, reading=reading)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    assert transport.reading
    watcher.detach()
    assert transport.reading is reading


@pytest.mark.parametrize("reading", [True, False])
def test_without_hold_the_rest_of_a_body_goes_where_it_belongs(wrapped, connection, reading):
    transport = Pipe(wrapped, reading=reading)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=False)
    assert transport.reading is reading
    watcher.data_received(b"body")
    assert wrapped.told == [("data", b"body")]
    watcher.detach()
    assert wrapped.told == [("data", b"body")]
    assert transport.reading is reading


def test_as_much_as_is_kept_is_handed_on_to_the_byte(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    watcher.data_received(b"x" * (MAX_PIPELINED_BYTES - 1))
    watcher.data_received(b"y")
    assert not watcher.overrun
    watcher.detach()
    assert wrapped.told == [("data", b"x" * (MAX_PIPELINED_BYTES - 1) + b"y")]


def test_of_more_than_that_nothing_is_kept_and_it_is_read_all_the_same(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    for _ in range(3):
        watcher.data_received(b"x" * MAX_PIPELINED_BYTES)
    watcher.data_received(b"GET / HTTP/1.1")  # it may be the end of something that was dropped
    assert watcher.overrun
    assert transport.reading
    watcher.detach()
    assert wrapped.told == []


def test_the_end_of_what_the_client_sends_is_the_end_of_the_connection(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    watcher.eof_received()
    assert connection.told == [("lose", CloseReason.CLIENT_LEFT)]
    assert wrapped.told == [("eof",)]
    assert transport.closing


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (None, CloseReason.CLIENT_LEFT),
        (ConnectionResetError(), CloseReason.CLIENT_LEFT),
        (TimeoutError(110, "Connection timed out"), CloseReason.STALLED),
    ],
)
def test_why_the_connection_was_lost_is_told_to_both(wrapped, connection, exc, reason):
    watcher = InterposedProtocol(connection, Pipe(wrapped), wrapped, hold=True)
    watcher.connection_lost(exc)
    assert connection.told == [("lose", reason)]
    assert wrapped.told == [("lost", exc)]


def test_pause_and_resume_are_told_to_both(wrapped, connection):
    watcher = InterposedProtocol(connection, Pipe(wrapped), wrapped, hold=True)
    watcher.pause_writing()
    watcher.resume_writing()
    assert connection.told == wrapped.told == [("pause",), ("resume",)]


def test_on_a_closing_transport_it_stays_to_tell_of_the_end(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    watcher.data_received(b"GET / HTTP/1.1")
    transport.abort()
    watcher.detach()
    assert wrapped.told == []
    watcher.connection_lost(None)
    assert wrapped.told == [("lost", None)]


def test_somebody_who_stepped_in_front_of_it_stays_there(wrapped, connection):
    transport = Pipe(wrapped)
    watcher = InterposedProtocol(connection, transport, wrapped, hold=True)
    somebody = Noted()
    transport.set_protocol(somebody)
    watcher.detach()
    assert transport.get_protocol() is somebody
