"""The decoder of a client, fed by a server with any bytes: it never fails, and takes no more memory than the event."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import Decoder
from tests.hostile.profile import fuzz

fragments = st.binary(max_size=20) | st.sampled_from(
    [b"data:", b"id:", b"event:", b"retry:", b":", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xef\xbb\xbf", b"\xf0\x9f"]
)


@fuzz(300)
@given(chunks=st.lists(fragments, max_size=12))
def test_any_bytes_in_any_chunks_are_decoded(chunks):
    decoder = Decoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    whole = Decoder()
    assert events == whole.feed(b"".join(chunks))
    assert (decoder.last_event_id, decoder.retry) == (whole.last_event_id, whole.retry)
    assert "\0" not in decoder.last_event_id
    assert decoder.feed(b"\n\ndata: next\n\n")[-1].data == "next"


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
@pytest.mark.parametrize("size", [1, 7])
def test_a_line_that_arrives_in_pieces_takes_about_its_size(letter, size):
    """A text of one character takes up to 80 bytes."""
    count = 20_000 // size
    chunk = (letter * size).encode()
    decoder = Decoder()
    decoder.feed(b"data: ")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            decoder.feed(chunk)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 120_000 + 4 * count * size
    (event,) = decoder.feed(b"\n\n")
    assert event.data == letter * count * size
