"""A client's own state: what is written to it, where it stands, what it has acknowledged."""

import pytest

from kernel.clients.client import Client, ClientState
from kernel.clients.close_reasons import GOING_AWAY, MAX_AGE, CloseReason
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.encodings import AsgiEncoding, WireEncoding
from kernel.log.event_stream import EventStreamEncoding
from kernel.log.frames import Frame
from kernel.messages.control import Pong
from kernel.position import NOWHERE, Position
from tests.fakes import FakeSink, entry

WIRE = WireEncoding(None, deflate=False, level=6)


def client_at(sequence: int, patterns: Patterns = EVERYTHING, *, epoch: str = "e") -> tuple[Client, FakeSink]:
    """Return a client at this place, and its sink."""
    sink = FakeSink()
    return Client("ws-events-1", sink, WIRE, Position(epoch, sequence), patterns), sink


def events(first: int, last: int, type: str = "event") -> list[Frame]:
    """Return the frames of consecutive events."""
    return [Frame.of("e", entry(number, type=type)) for number in range(first, last + 1)]


def test_a_new_client() -> None:
    """A client that never subscribed receives everything; it is not live before the hub makes it so."""
    client, _ = client_at(3)
    assert client.patterns is EVERYTHING
    assert client.state is ClientState.BEHIND
    assert (client.acked, client.acks) == (0, 0)


def test_tell() -> None:
    """Control messages ignore patterns and follow what was written before."""
    client, sink = client_at(3, Patterns.of([]))
    client.write([Frame.gap("e", 4, 5)])
    client.tell(Pong())
    assert sink.outline == ["gap 4-5", "pong"]


@pytest.mark.parametrize(("reason", "told"), [(MAX_AGE, ["closing"]), (GOING_AWAY, [])])
def test_close(reason: CloseReason, told: list[str]) -> None:
    """A client without close codes is told in a last message that its connection is too old; others need none."""
    client, sink = client_at(3)
    client.close(reason)
    assert (sink.outline, sink.closed) == ([], reason)

    sink = FakeSink(stream=True)
    client = Client("sse-events-1", sink, EventStreamEncoding(chunked=False), Position("e", 3))
    client.close(reason)
    assert (sink.outline, sink.closed) == (told, reason)
    assert [(message["code"], message["reason"]) for message in sink.messages] == [tuple(reason)] * len(told)


def test_take_is_one_write() -> None:
    """The matching ones of several frames go in one write, and the client then stands at the last frame."""
    client, sink = client_at(3)
    assert client.write(events(4, 6)).messages == 3
    assert (sink.numbers, sink.writes) == ([4, 5, 6], 1)
    assert client.place == Position("e", 6)


def test_take_obeys_the_patterns() -> None:
    """Events that the patterns skip count as passed; markers pass all patterns."""
    client, sink = client_at(3, Patterns.of(["scene_change"]))
    assert client.write(events(4, 6)).messages == 0
    assert (sink.writes, client.place.sequence) == (0, 6)
    assert client.write([*events(7, 7), Frame.gap("e", 8, 9), *events(10, 10, "scene_change")]).messages == 2
    assert sink.outline == ["gap 8-9", "10"]


def test_take_as_replay() -> None:
    """Replayed events are marked, markers are not."""
    client, sink = client_at(3)
    assert client.write([*events(4, 4), Frame.gap("e", 5, 5)], replay=True).messages == 2
    assert sink.outline == ["r4", "gap 5-5"]


def test_take_over_plain_asgi() -> None:
    """Over plain ASGI too several frames are one write."""
    sink = FakeSink()
    client = Client("ws-events-1", sink, AsgiEncoding(10, level=6), Position("e", 0))
    client.write(events(1, 2))
    assert (sink.numbers, sink.writes) == ([1, 2], 1)


def test_acks_are_never_lowered() -> None:
    """Only an ack of a higher number raises the highest one; every ack is counted."""
    client, _ = client_at(9)
    assert [client.acknowledge(number) for number in (3, 7, 5, 7, 9)] == [True, True, False, False, True]
    assert (client.acked, client.acks) == (9, 5)


def test_acks_beyond_the_own_place() -> None:
    """An ack beyond the client's own place is counted and ignored."""
    client, _ = client_at(9)
    assert not client.acknowledge(10)
    assert not client.acknowledge(10**30)
    assert (client.acked, client.acks) == (0, 2)
    client.write(events(10, 10))
    assert client.acknowledge(10)


def test_acks_begin_again_in_a_new_epoch() -> None:
    """In a new epoch acks restart at 0."""
    client, _ = client_at(9)
    client.acknowledge(9)
    client.write([Frame.new_epoch("f"), Frame.of("f", entry(1))])
    assert client.acked == 0
    assert not client.acknowledge(9)
    assert client.acknowledge(1)
    assert client.acked == 1


def test_acks_after_a_step_back() -> None:
    """During a replay a client can still acknowledge what it received before."""
    client, _ = client_at(9)
    client.acknowledge(2)
    client.move_to(Position("e", 4))
    assert client.place.sequence == 4
    assert client.acknowledge(8)
    assert not client.acknowledge(10)
    client.move_to(Position("e", 1))
    assert client.acknowledge(9)
    assert client.acked == 9


def test_a_step_back_into_another_epoch() -> None:
    """Acks of the old epoch do not count in the new one."""
    client, _ = client_at(9)
    client.acknowledge(9)
    client.move_to(Position("f", 2))
    assert client.acked == 0
    assert not client.acknowledge(3)
    assert client.acknowledge(2)


def test_acks_before_redis_was_reached() -> None:
    """Before Redis was reached there is nothing to acknowledge."""
    client = Client("ws-events-1", FakeSink(), WIRE, NOWHERE)
    assert not client.acknowledge(1)
    assert client.acks == 1
