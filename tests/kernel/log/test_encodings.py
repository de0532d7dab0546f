"""Encodings: the bytes of one message for each kind of client."""

import math
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from kernel.log.encodings import WINDOW_BITS, AsgiEncoding, WireEncoding
from tests.fakes import text_of, wire_frames

PLAIN = WireEncoding(None, deflate=False, level=6)
ZLIB = WireEncoding(1024, deflate=False, level=6)
DEFLATE = WireEncoding(None, deflate=True, level=6)
BOTH = WireEncoding(1024, deflate=True, level=6)


# -- RFC 6455


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, b"\x81\x00"),
        (1, b"\x81\x01"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_lengths(length: int, head: bytes) -> None:
    """The length takes 7, 16 or 64 bits, whichever is the shortest, and nothing is masked (RFC 6455, section 5.2)."""
    payload = b"x" * length
    assert PLAIN.encode(payload) == head + payload
    assert bytes(wire_frames(PLAIN.encode(payload))[0].data) == payload


def test_several_frames_in_one_write() -> None:
    """Messages are joined into one write, in their order."""
    joined = BOTH.join([BOTH.encode(text) for text in (b"first", b"second" * 300, b"third" * 40)])
    assert [text_of(frame) for frame in wire_frames(joined)] == ["first", "second" * 300, "third" * 40]


# -- format=zlib


@pytest.mark.parametrize("encoding", [ZLIB, BOTH])
def test_zlib_from_the_threshold_on(encoding: WireEncoding) -> None:
    """Messages from the threshold on are binary frames of 0x00 and a zlib stream; smaller ones are text."""
    below, above = b"x" * 1023, b"x" * 1024
    assert wire_frames(encoding.encode(below))[0].opcode is Opcode.TEXT
    (frame,) = wire_frames(encoding.encode(above))
    assert frame.opcode is Opcode.BINARY
    assert frame.data[0] == 0
    assert zlib.decompress(frame.data[1:]) == above


def test_the_threshold_counts_bytes() -> None:
    """The threshold is in UTF-8 bytes, not in characters."""
    assert wire_frames(ZLIB.encode(("é" * 512).encode()))[0].opcode is Opcode.BINARY
    assert wire_frames(ZLIB.encode(("é" * 511).encode()))[0].opcode is Opcode.TEXT


def test_a_zlib_message_is_not_deflated_again() -> None:
    """A zlib message is not compressed again where permessage-deflate is agreed too."""
    assert BOTH.encode(b"x" * 2000) == ZLIB.encode(b"x" * 2000)


def test_compression_levels() -> None:
    """The compression level is zlib's, for both compressions."""
    json = b"".join(b'{"number":%d},' % (n * n) for n in range(500))
    for zlib_from, deflate in ((0, False), (None, True)):
        fast, small = (len(WireEncoding(zlib_from, deflate=deflate, level=level).encode(json)) for level in (1, 9))
        assert small < fast


# -- permessage-deflate


def test_deflate() -> None:
    """The first reserved bit marks a compressed frame, and the stream ends without its empty block (RFC 7692)."""
    data = DEFLATE.encode(b"x" * 128)
    assert data[0] == 0xC1
    assert len(data) < 40
    inflated = zlib.decompressobj(-WINDOW_BITS).decompress(data[2:] + b"\x00\x00\xff\xff")
    assert inflated == b"x" * 128


@pytest.mark.parametrize("encoding", [ZLIB, DEFLATE, AsgiEncoding(1024, level=6)])
@pytest.mark.parametrize("length", [2000, 4096, 100_000])
def test_large_messages_are_compressed_in_steps(encoding: WireEncoding | AsgiEncoding, length: int) -> None:
    """At most 2 kB are compressed in one step, and the bytes are those of a compression in one go."""
    json = b'"%s"' % bytes(random.Random(length).choices(b"events", k=length - 2))
    *before, message = encoding.steps(json)
    assert (len(before), set(before)) == (math.ceil(length / 2048) - 1, {None} if length > 2048 else set())
    assert message == encoding.encode(json)
    if encoding is DEFLATE:
        compressor = zlib.compressobj(6, zlib.DEFLATED, -WINDOW_BITS)
        payload = (compressor.compress(json) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    else:
        payload = b"\x00" + zlib.compress(json, 6)
    assert isinstance(message, bytes)
    assert message.endswith(payload)


def test_small_messages_stay_plain() -> None:
    """A message that would not get smaller goes uncompressed, which RFC 7692 allows."""
    assert DEFLATE.encode(b"x" * 127) == PLAIN.encode(b"x" * 127)
    noise = bytes(range(256))
    assert DEFLATE.encode(noise) == PLAIN.encode(noise)


@pytest.mark.parametrize("length", [128, 4096, 5000, 70_000, 200_000])
def test_deflate_of_any_length(length: int) -> None:
    """A client with the agreed window reads compressed frames of any length."""
    text = "".join(f'{{"sequence":{n},"camera":"küche"}}' for n in range(length // 30 + 1))[:length]
    assert text_of(wire_frames(DEFLATE.encode(text.encode()))[0]) == text


@given(texts=st.lists(st.text(max_size=300).map(lambda text: text * 3), max_size=6))
def test_shared_frames_between_others(texts: list[str]) -> None:
    """No compression context is kept, so a frame reads the same after any other."""
    for encoding in (PLAIN, DEFLATE, ZLIB, BOTH):
        joined = encoding.join([encoding.encode(text.encode()) for text in texts])
        assert [text_of(frame) for frame in wire_frames(joined)] == texts


# -- plain ASGI


def test_asgi_messages() -> None:
    """Plain ASGI messages are str, and bytes where they are zlib streams."""
    json_only, zlibbed = AsgiEncoding(None, level=6), AsgiEncoding(10, level=6)
    assert json_only.encode("é".encode() * 5000) == "é" * 5000
    assert zlibbed.encode(b"123456789") == "123456789"
    made = zlibbed.encode(b"1234567890")
    assert isinstance(made, bytes)
    assert made[0] == 0
    assert zlib.decompress(made[1:]) == b"1234567890"
    assert zlibbed.join(["a", made]) == ["a", made]
