from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason
from aiohttp_interceptors.web.transport import MAX_PIPELINED_BYTES, InterposedProtocol


class Pipe(asyncio.Transport):
    """A transport without I/O."""

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


class Recorder(asyncio.Protocol):
    """Record the calls to aiohttp's protocol, or to the connection of a stream."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def data_received(self, data):
        self.calls.append(("data", data))

    def eof_received(self):
        self.calls.append(("eof",))

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))

    def pause_writing(self):
        self.calls.append(("pause",))

    def resume_writing(self):
        self.calls.append(("resume",))

    def mark_disconnected(self, reason):
        self.calls.append(("disconnected", reason))


@pytest.fixture
def wrapped() -> Recorder:
    return Recorder()


@pytest.fixture
def connection() -> Recorder:
    return Recorder()


def test_data_that_arrives_while_the_stream_is_open_is_forwarded_after_it(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    assert transport.get_protocol() is interposed
    interposed.data_received(b"GET / ")
    interposed.data_received(b"HTTP/1.1")
    assert wrapped.calls == []
    interposed.detach()
    assert wrapped.calls == [("data", b"GET / HTTP/1.1")]
    assert transport.get_protocol() is wrapped


@pytest.mark.parametrize("reading", [True, False])
def test_it_resumes_reading_and_restores_the_state_on_detach(wrapped, connection, reading):
    transport = Pipe(wrapped, reading=reading)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    assert transport.reading
    interposed.detach()
    assert transport.reading is reading


@pytest.mark.parametrize("reading", [True, False])
def test_without_hold_the_rest_of_a_request_body_is_forwarded_immediately(wrapped, connection, reading):
    transport = Pipe(wrapped, reading=reading)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=False)
    assert transport.reading is reading
    interposed.data_received(b"body")
    assert wrapped.calls == [("data", b"body")]
    interposed.detach()
    assert wrapped.calls == [("data", b"body")]
    assert transport.reading is reading


def test_data_up_to_the_limit_is_forwarded_completely(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    interposed.data_received(b"x" * (MAX_PIPELINED_BYTES - 1))
    interposed.data_received(b"y")
    assert not interposed.overflowed
    interposed.detach()
    assert wrapped.calls == [("data", b"x" * (MAX_PIPELINED_BYTES - 1) + b"y")]


def test_data_above_the_limit_is_discarded_and_reading_continues(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    for _ in range(3):
        interposed.data_received(b"x" * MAX_PIPELINED_BYTES)
    interposed.data_received(b"GET / HTTP/1.1")  # possibly the end of a discarded request
    assert interposed.overflowed
    assert transport.reading
    interposed.detach()
    assert wrapped.calls == []


def test_eof_aborts_the_connection(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    interposed.eof_received()
    assert connection.calls == [("disconnected", CloseReason.CLIENT_LEFT)]
    assert wrapped.calls == [("eof",)]
    assert transport.closing


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (None, CloseReason.CLIENT_LEFT),
        (ConnectionResetError(), CloseReason.CLIENT_LEFT),
        (TimeoutError(110, "Connection timed out"), CloseReason.STALLED),
    ],
)
def test_connection_lost_is_forwarded_and_sets_the_close_reason(wrapped, connection, exc, reason):
    interposed = InterposedProtocol(connection, Pipe(wrapped), wrapped, hold=True)
    interposed.connection_lost(exc)
    assert connection.calls == [("disconnected", reason)]
    assert wrapped.calls == [("lost", exc)]


def test_pause_and_resume_writing_are_forwarded_and_sent_to_the_connection(wrapped, connection):
    interposed = InterposedProtocol(connection, Pipe(wrapped), wrapped, hold=True)
    interposed.pause_writing()
    interposed.resume_writing()
    assert connection.calls == wrapped.calls == [("pause",), ("resume",)]


def test_on_a_closing_transport_it_stays_until_connection_lost(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    interposed.data_received(b"GET / HTTP/1.1")
    transport.abort()
    interposed.detach()
    assert wrapped.calls == []
    interposed.connection_lost(None)
    assert wrapped.calls == [("lost", None)]


def test_a_protocol_that_was_interposed_later_is_not_replaced(wrapped, connection):
    transport = Pipe(wrapped)
    interposed = InterposedProtocol(connection, transport, wrapped, hold=True)
    other = Recorder()
    transport.set_protocol(other)
    interposed.detach()
    assert transport.get_protocol() is other
