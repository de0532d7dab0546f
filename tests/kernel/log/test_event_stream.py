"""The encoding of server-sent events (WHATWG HTML, 9.2)."""

import json

import pytest

from kernel.log.event_stream import EventStreamEncoding
from kernel.messages.control import (
    Closing,
    Connected,
    Control,
    EpochChanged,
    Error,
    Gap,
    Ping,
    ResyncAck,
    ServiceNotice,
    Shutdown,
)
from kernel.position import NOWHERE, Position

STREAM = EventStreamEncoding(chunked=False)
PLACE = Position("epoch-1", 42)
ACK = ResyncAck("events", "epoch-1", 40, 2, recovered=True)


def test_event() -> None:
    """An event is its id and its JSON on one line, without a name, so that `onmessage` gets it."""
    assert STREAM.encode(b'{"type":"event"}', PLACE) == b'id: epoch-1:42\ndata: {"type":"event"}\n\n'


def test_line_ends() -> None:
    """JSON that a producer has broken into lines stays on one line, and means the same."""
    text = b'{"details":{\r\n"a":\r1,\n"b":"\\n"}}'
    block = STREAM.encode(text, PLACE)
    assert block.count(b"\n") == 3
    assert b"\r" not in block
    assert json.loads(block.split(b"data: ")[1]) == json.loads(text)


@pytest.mark.parametrize(
    ("control", "place", "head"),
    [
        (Connected("c", "epoch-1", 42), PLACE, "id: epoch-1:42\nevent: connected\n"),
        (Connected("c", "epoch-1", 42), None, "event: connected\n"),
        (Connected("c", "", 0), NOWHERE, "event: connected\n"),
        (ACK, PLACE, "id: epoch-1:42\nevent: resync_ack\n"),
        (Gap(1, 42), PLACE, "event: gap\n"),
        (EpochChanged("epoch-1"), PLACE, "event: epoch_changed\n"),
        (ServiceNotice.healthy("now"), None, "event: service_status\n"),
        (Error("validation_error", "m", {}), None, "event: validation_error\n"),
        (Shutdown.within(1500), None, "retry: 1500\nevent: system.shutdown\n"),
        (Closing(1012, "too old"), None, "retry: 1000\nevent: closing\n"),
    ],
)
def test_control(control: Control, place: Position | None, head: str) -> None:
    """A control message has its name in `event`, and an id only where a client can resume from it."""
    block = STREAM.encode_control(control, place).decode()
    assert block.startswith(head + "data: {")
    assert block.endswith("}\n\n")
    assert block.count("\n") == head.count("\n") + 2


def test_heartbeat() -> None:
    """A heartbeat is an id without data, which no listener notices; without an epoch it is a comment."""
    assert STREAM.encode_control(Ping(42, "epoch-1")) == b"id: epoch-1:42\n\n"
    assert STREAM.encode_control(Ping(0, "")) == b":\n\n"


def test_epoch_that_cannot_stand_in_a_line() -> None:
    """An epoch with a line end, which only another program can have written to Redis, makes no id."""
    assert STREAM.encode(b"{}", Position("a\nb", 1)) == b"data: {}\n\n"


def test_join() -> None:
    """Several blocks are one write; with the chunked coding they are one chunk."""
    blocks = [STREAM.encode(b"{}", PLACE), STREAM.encode_control(ACK, PLACE)]
    assert STREAM.join(blocks) == b"".join(blocks)
    length = len(b"".join(blocks))
    assert EventStreamEncoding(chunked=True).join(blocks) == b"%x\r\n%b\r\n" % (length, b"".join(blocks))
