"""What a broker carries is read as it was packed, by this version and by others; what is none is told from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.hub.message import MAX_KEY, Content, pack, unpack

keys = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(frame=st.binary(), key=keys, ephemeral=st.booleans())
def test_it_is_read_as_it_was_packed(frame, key, ephemeral):
    assert unpack(pack(frame, key, ephemeral=ephemeral)) == Content(frame, key, ephemeral)


@pytest.mark.parametrize("length", [0, 1, 255, 256, MAX_KEY])
def test_a_key_may_be_as_long_as_two_bytes_say(length):
    key = "k" * length
    assert unpack(pack(b"data: x\n\n", key, ephemeral=False)) == Content(b"data: x\n\n", key, False)


@pytest.mark.parametrize(
    ("payload", "content"),
    [
        (b"\x10data: x\n\n", Content(b"data: x\n\n", None, False)),
        (b"\x11\x00\x01kdata: x\n\n", Content(b"data: x\n\n", "k", False)),
        (b"\x12data: x\n\n", Content(b"data: x\n\n", None, True)),
        (b"\x13\x00\x02\xc3\xa9data: x\n\n", Content(b"data: x\n\n", "é", True)),
        (b"\x11\x00\x00data: x\n\n", Content(b"data: x\n\n", "", False)),
    ],
)
def test_other_versions_read_these_bytes(payload, content):
    """What is stored outlives the version that wrote it."""
    assert pack(content.frame, content.key, ephemeral=content.ephemeral) == payload
    assert unpack(payload) == content


@pytest.mark.parametrize("first", [number for number in range(256) if number not in range(0x10, 0x14)])
def test_what_begins_otherwise_is_of_another_version_and_its_byte_is_told(first):
    with pytest.raises(ValueError, match="no payload of a Hub") as raised:
        unpack(bytes([first]) + b"\0\1kdata: x\n\n")
    assert repr(bytes([first])) in str(raised.value)


def test_nothing_is_no_payload():
    with pytest.raises(ValueError, match="no payload of a Hub"):
        unpack(b"")


@given(key=st.text(st.characters(exclude_categories=["Cs"]), max_size=9), ephemeral=st.booleans(), data=st.data())
def test_one_that_was_cut_within_its_key_is_told(key, ephemeral, data):
    whole = pack(b"", key, ephemeral=ephemeral)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(ValueError, match=f"a payload of {len(cut)} bytes was cut before byte"):
        unpack(cut)


def test_a_key_that_is_no_text_is_told():
    with pytest.raises(ValueError, match="utf-8"):
        unpack(b"\x11\x00\x01\xffdata: x\n\n")
