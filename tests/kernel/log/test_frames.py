"""Frames: the bytes of one message, right for every kind of client and made once."""

import json
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from kernel.log.frames import WINDOW_BITS, AsgiEncoding, Encoding, Frame, Joined, WireEncoding, chunks, ready_control
from kernel.messages.control import Pong
from kernel.position import Position
from tests.fakes import entry, text_of, wire_frames

PLAIN = WireEncoding(None, deflate=False, level=6)
ZLIB = WireEncoding(1024, deflate=False, level=6)
DEFLATE = WireEncoding(None, deflate=True, level=6)
BOTH = WireEncoding(1024, deflate=True, level=6)


class Counting:
    """An encoding that counts what it makes."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def encode(self, json: bytes) -> bytes | str:
        """Count, and leave it as it is."""
        self.made.append(json)
        return json

    def join(self, messages: Iterable[bytes | str]) -> Joined:
        """Put them into a list."""
        return list(messages)


# -- what is in a message


def test_live_frame() -> None:
    """Section 4, live frame: type, data, sequence and requires_ack, and nothing that the event does not have."""
    frame = Frame.of("e1", entry())
    assert (
        frame.ready(AsgiEncoding(None, level=6)) == '{"type":"event","data":{"a":1},"sequence":42,"requires_ack":false}'
    )
    assert frame.place == Position("e1", 42)
    assert frame.names == ("event", "event.created")
    assert frame.size == len('{"type":"event","data":{"a":1},"sequence":42,"requires_ack":false}')


def test_all_that_a_live_frame_can_have() -> None:
    """Section 4, live frame: timestamp and traceparent go with it, the rest of the trace context stays."""
    frame = Frame.of(
        "e1",
        entry(
            type="worker_status",
            requires_ack=True,
            timestamp="2026-01-01T00:00:00Z",
            event_type="worker.Started",
            traceparent="00-ab-cd-01",
            tracestate="a=b",
            baggage="c=d",
        ),
    )
    assert frame.message(replay=False) == {
        "type": "worker_status",
        "data": {"a": 1},
        "sequence": 42,
        "requires_ack": True,
        "timestamp": "2026-01-01T00:00:00Z",
        "traceparent": "00-ab-cd-01",
    }
    assert frame.names == ("worker_status", "worker.status_changed", "worker.started")


def test_a_null_timestamp_is_kept() -> None:
    """Section 3, messages: worker_status has its envelope timestamp also when it is null."""
    assert Frame.of("e1", entry(timestamp=None)).message(replay=False)["timestamp"] is None
    assert "timestamp" not in Frame.of("e1", entry()).message(replay=False)


@pytest.mark.parametrize("data", ['{"n":12345678901234567890,"f":1.10,"l":[],"s":"\\u00e9é😀"}', '{ "spaced" : [ ] }'])
def test_data_passes_through_untouched(data: str) -> None:
    """Section 7: the data's bytes are those that the producer's replica wrote."""
    assert f'"data":{data},"sequence"' in str(Frame.of("e1", entry(data=data)).ready(AsgiEncoding(None, level=6)))


def test_strings_are_escaped() -> None:
    """Section 7: a type or trace context that a newer replica wrote cannot break the frame."""
    frame = Frame.of("e1", entry(type='new"type', traceparent='a"b', timestamp="\n"))
    assert frame.message(replay=False)["type"] == 'new"type'
    assert frame.message(replay=False)["traceparent"] == 'a"b'


def test_replayed_event() -> None:
    """Section 6, resume: a replayed event is the live one with `"replay": true`."""
    frame = Frame.of("e1", entry())
    live, replayed = (json.loads(text_of(wire_frames(make(PLAIN))[0])) for make in (frame.ready, frame.replayed))
    assert replayed == {**live, "replay": True}
    assert frame.message(replay=True) == replayed


@pytest.mark.parametrize(
    ("marker", "place", "message"),
    [
        (Frame.gap("e1", 3, 5), Position("e1", 5), {"type": "gap", "from": 3, "to": 5}),
        (Frame.new_epoch("e2"), Position("e2", 0), {"type": "epoch_changed", "epoch": "e2"}),
        (Frame.first_epoch(Position("e2", 9)), Position("e2", 9), {"type": "epoch_changed", "epoch": "e2"}),
    ],
)
def test_markers(marker: Frame, place: Position, message: dict[str, Any]) -> None:
    """Sections 6 and 7: markers stand in the log like events, have no names to filter by, and are never "replayed"."""
    assert marker.place == place
    assert marker.names is None
    assert marker.entry is None
    assert json.loads(text_of(wire_frames(marker.ready(PLAIN))[0])) == message
    assert marker.replayed(PLAIN) is marker.ready(PLAIN)


# -- made once


def test_each_variant_is_made_once_and_shared() -> None:
    """Section 4, compression: once per message and encoding, live and replayed, and the same object for all."""
    frame, encodings = Frame.of("e1", entry()), [Counting(), Counting()]
    for encoding in encodings:
        assert encoding.made == []
        for _ in range(3):
            assert frame.ready(encoding) is frame.ready(encoding)
            assert frame.replayed(encoding) is frame.replayed(encoding)
        assert len(encoding.made) == 2
        assert b'"replay":true' in encoding.made[1]
        assert b"replay" not in encoding.made[0]


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
    """RFC 6455, section 5.2: the length takes 7, 16 or 64 bits, whichever is the shortest, and nothing is masked."""
    payload = b"x" * length
    assert PLAIN.encode(payload) == head + payload
    assert bytes(wire_frames(PLAIN.encode(payload))[0].data) == payload


def test_several_frames_in_one_write() -> None:
    """Section 9: messages are joined into one write, in their order."""
    joined = BOTH.join([BOTH.encode(text) for text in (b"first", b"second" * 300, b"third" * 40)])
    assert [text_of(frame) for frame in wire_frames(joined)] == ["first", "second" * 300, "third" * 40]


# -- format=zlib


@pytest.mark.parametrize("encoding", [ZLIB, BOTH])
def test_zlib_from_the_threshold_on(encoding: WireEncoding) -> None:
    """Section 4, format=zlib: from the threshold on a binary frame of 0x00 and a zlib stream, text below."""
    below, above = b"x" * 1023, b"x" * 1024
    assert wire_frames(encoding.encode(below))[0].opcode is Opcode.TEXT
    (frame,) = wire_frames(encoding.encode(above))
    assert frame.opcode is Opcode.BINARY
    assert frame.data[0] == 0
    assert zlib.decompress(frame.data[1:]) == above


def test_the_threshold_counts_bytes() -> None:
    """Section 4, format=zlib: the threshold is in UTF-8 bytes, not in characters."""
    assert wire_frames(ZLIB.encode(("é" * 512).encode()))[0].opcode is Opcode.BINARY
    assert wire_frames(ZLIB.encode(("é" * 511).encode()))[0].opcode is Opcode.TEXT


def test_a_zlib_message_is_not_deflated_again() -> None:
    """Section 4, format=zlib: with permessage-deflate agreed too, a zlib frame goes as it is."""
    assert BOTH.encode(b"x" * 2000) == ZLIB.encode(b"x" * 2000)


def test_compression_levels() -> None:
    """Section 11, settings: the level is zlib's, for both compressions."""
    json = b"".join(b'{"number":%d},' % (n * n) for n in range(500))
    for zlib_from, deflate in ((0, False), (None, True)):
        fast, small = (len(WireEncoding(zlib_from, deflate=deflate, level=level).encode(json)) for level in (1, 9))
        assert small < fast


# -- permessage-deflate


def test_deflate() -> None:
    """RFC 7692: the first reserved bit says "compressed", and the stream ends without its empty block."""
    data = DEFLATE.encode(b"x" * 128)
    assert data[0] == 0xC1
    assert len(data) < 40
    inflated = zlib.decompressobj(-WINDOW_BITS).decompress(data[2:] + b"\x00\x00\xff\xff")
    assert inflated == b"x" * 128


def test_small_messages_stay_plain() -> None:
    """Section 4, permessage-deflate: a message that would not get smaller goes uncompressed, which RFC 7692 allows."""
    assert DEFLATE.encode(b"x" * 127) == PLAIN.encode(b"x" * 127)
    noise = bytes(range(256))
    assert DEFLATE.encode(noise) == PLAIN.encode(noise)


@pytest.mark.parametrize("length", [128, 4096, 5000, 70_000, 200_000])
def test_deflate_of_any_length(length: int) -> None:
    """Section 4, permessage-deflate: a client with the agreed window reads frames that reach back beyond it."""
    text = "".join(f'{{"sequence":{n},"camera":"küche"}}' for n in range(length // 30 + 1))[:length]
    assert text_of(wire_frames(DEFLATE.encode(text.encode()))[0]) == text


@given(texts=st.lists(st.text(max_size=300).map(lambda text: text * 3), max_size=6))
def test_shared_frames_between_others(texts: list[str]) -> None:
    """Section 4, permessage-deflate: no context is taken over, so any frame reads the same after any other."""
    for encoding in (PLAIN, DEFLATE, ZLIB, BOTH):
        joined = encoding.join([encoding.encode(text.encode()) for text in texts])
        assert [text_of(frame) for frame in wire_frames(joined)] == texts


# -- plain ASGI


def test_asgi_messages() -> None:
    """Section 4, format: where no ready frames can be written the same messages go as str, and zlib ones as bytes."""
    json_only, zlibbed = AsgiEncoding(None, level=6), AsgiEncoding(10, level=6)
    assert json_only.encode("é".encode() * 5000) == "é" * 5000
    assert zlibbed.encode(b"123456789") == "123456789"
    made = zlibbed.encode(b"1234567890")
    assert isinstance(made, bytes)
    assert made[0] == 0
    assert zlib.decompress(made[1:]) == b"1234567890"
    assert zlibbed.join(["a", made]) == ["a", made]


@pytest.mark.parametrize(
    ("encoding", "ready"),
    [(PLAIN, b'\x81\x0f{"type":"pong"}'), (AsgiEncoding(None, level=6), ['{"type":"pong"}'])],
)
def test_control_messages(encoding: Encoding, ready: Joined) -> None:
    """Section 4: a control message is framed like any other."""
    assert ready_control(Pong(), encoding) == ready


def test_chunks() -> None:
    """Frames are cut into runs of about a size, in their order; a frame larger than that is a run of its own."""
    small = [Frame.of("e", entry(number, "{}")) for number in range(1, 5)]
    large = [Frame.of("e", entry(5, '"%s"' % ("x" * 1000)))]
    size = small[0].size
    assert list(chunks([], 100)) == []
    assert list(chunks(small, size * 2)) == [small[:2], small[2:]]
    assert list(chunks(small, size * 3 - 1)) == [small[:2], small[2:]]
    assert list(chunks(small, 10**6)) == [small]
    assert list(chunks(small, 1)) == [[frame] for frame in small]
    assert list(chunks([*small[:1], *large, *small[1:]], 500)) == [small[:1], large, small[1:]]
