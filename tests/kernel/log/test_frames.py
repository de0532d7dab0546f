"""Frames: the bytes of one message, encoded once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kernel.log.encodings import AsgiEncoding, Encoding, Joined, WireEncoding
from kernel.log.frames import Frame, chunks, ready_control
from kernel.messages.control import Pong
from kernel.position import Position
from tests.fakes import entry, text_of, wire_frames

PLAIN = WireEncoding(None, deflate=False, level=6)


class Counting(AsgiEncoding):
    """An encoding that counts the messages it encodes."""

    def __init__(self) -> None:
        super().__init__(None, level=6)
        self.made: list[bytes] = []

    def steps(self, json: bytes, place: Position | None = None) -> Iterator[bytes | str | None]:
        """Count the message, and return it unchanged after two further steps."""
        self.made.append(json)
        yield from (None, None, json)


# -- what is in a message


def test_live_frame() -> None:
    """A live frame has type, data, sequence and requires_ack, and nothing that the event does not have."""
    frame = Frame.of("e1", entry())
    assert (
        frame.ready(AsgiEncoding(None, level=6)) == '{"type":"event","data":{"a":1},"sequence":42,"requires_ack":false}'
    )
    assert frame.place == Position("e1", 42)
    assert frame.names == ("event", "event.created")
    assert frame.size == len('{"type":"event","data":{"a":1},"sequence":42,"requires_ack":false}')


def test_all_that_a_live_frame_can_have() -> None:
    """A live frame has timestamp and traceparent, but not the rest of the trace context."""
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


def test_the_old_name_of_the_number() -> None:
    """The number can have another name, live and replayed."""
    frame = Frame.of("e1", entry(), b"seq")
    assert frame.message(replay=False) == {"type": "event", "data": {"a": 1}, "seq": 42, "requires_ack": False}
    assert json.loads(text_of(wire_frames(frame.ready(PLAIN, replay=True))[0]))["seq"] == 42


def test_a_null_timestamp_is_kept() -> None:
    """A null timestamp is part of the frame; an absent one is not."""
    assert Frame.of("e1", entry(timestamp=None)).message(replay=False)["timestamp"] is None
    assert "timestamp" not in Frame.of("e1", entry()).message(replay=False)


@pytest.mark.parametrize("data", ['{"n":12345678901234567890,"f":1.10,"l":[],"s":"\\u00e9é😀"}', '{ "spaced" : [ ] }'])
def test_data_passes_through_untouched(data: str) -> None:
    """The bytes of `data` are those that the producer's replica wrote."""
    assert f'"data":{data},"sequence"' in str(Frame.of("e1", entry(data=data)).ready(AsgiEncoding(None, level=6)))


def test_strings_are_escaped() -> None:
    """A type or trace context that a newer replica wrote cannot break the frame."""
    frame = Frame.of("e1", entry(type='new"type', traceparent='a"b', timestamp="\n"))
    assert frame.message(replay=False)["type"] == 'new"type'
    assert frame.message(replay=False)["traceparent"] == 'a"b'


def test_replayed_event() -> None:
    """A replayed event is the live one with `"replay": true`."""
    frame = Frame.of("e1", entry())
    messages = [frame.ready(PLAIN, replay=replay) for replay in (False, True)]
    live, replayed = (json.loads(text_of(wire_frames(message)[0])) for message in messages)
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
    """A marker has a position like an event, no names for patterns to match, and is never marked as replayed."""
    assert marker.place == place
    assert marker.names is None
    assert marker.entry is None
    assert json.loads(text_of(wire_frames(marker.ready(PLAIN))[0])) == message
    assert marker.ready(PLAIN, replay=True) is marker.ready(PLAIN)


# -- made once


def test_each_variant_is_made_once_and_shared() -> None:
    """A frame is encoded once for each encoding, live and replayed, and all clients get the same object."""
    frame, encodings = Frame.of("e1", entry()), [Counting(), Counting()]
    for encoding in encodings:
        assert encoding.made == []
        for _ in range(3):
            assert frame.ready(encoding) is frame.ready(encoding)
            assert frame.ready(encoding, replay=True) is frame.ready(encoding, replay=True)
        assert len(encoding.made) == 2
        assert b'"replay":true' in encoding.made[1]
        assert b"replay" not in encoding.made[0]


def test_receivers_share_the_steps() -> None:
    """Of receivers that need a message at the same time, each does a part of the work, and none repeats it."""
    frame, encoding = Frame.of("e1", entry()), Counting()
    assert frame.advance(encoding) is None
    assert frame.advance(encoding, replay=True) is None
    assert frame.made(encoding) is None
    assert frame.advance(encoding) is None
    live = frame.advance(encoding)
    assert live is not None
    assert (frame.made(encoding), frame.made(encoding, replay=True)) == (live, None)
    assert frame.ready(encoding, replay=True) != frame.ready(encoding) == live
    assert len(encoding.made) == 2


# -- control messages


@pytest.mark.parametrize(
    ("encoding", "ready"),
    [(PLAIN, b'\x81\x0f{"type":"pong"}'), (AsgiEncoding(None, level=6), ['{"type":"pong"}'])],
)
def test_control_messages(encoding: Encoding, ready: Joined) -> None:
    """A control message is encoded like any other."""
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
